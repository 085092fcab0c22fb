"""Filler without end that no needle is hidden in: prose on many topics, and a few lines over and over."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle

from actqkv_cli.bench.generators.draw import Draw
from actqkv_cli.bench.generators.words import phrases


@dataclass(frozen=True)
class Topic:
    people: tuple[str, ...]
    did: tuple[str, ...]
    things: tuple[str, ...]
    places: tuple[str, ...]


# One topic per paragraph: people; what they did; to what; where.
_TOPICS = tuple(
    Topic(*(phrases(part) for part in topic.split(";")))
    for topic in (
        """the pilot, a deckhand, the harbour master, two fishermen, a boatbuilder, the captain's widow,
        an old helmsman, the sailmaker, the cabin boy; mended, hauled in, coiled, tarred, sighted, lowered, lashed down,
        unloaded, scraped, hoisted; the nets, a crate of herring, the anchor chain, the mainsail, a leaking dinghy,
        the fog buoy, some baskets of crabs, the rudder, a torn flag, the lobster pots, the bilge pump; beside the
        breakwater, on the quay, off the headland, below deck, at the end of the jetty, in the shelter of the bay""",
        """the pastry cook, the scullery maid, an apprentice, the head steward, her grandmother, the butcher's boy,
        a hungry lodger, the dairywoman, the spice merchant; kneaded, tasted, salted, burned, set aside, stirred,
        weighed out, covered, sniffed at, warmed up; the dough, a goose, the copper pans, a sauce of capers, the rye
        loaves, a bowl of cherries, the breakfast tray, a side of bacon, the custard, a jar of honey, the stew; by the
        stove, in the pantry, at the long table, under the hanging hams, on the cold slab, behind the larder door""",
        """the gardener, a beekeeper, the vicar's sister, the hired man, a lady in gloves, the seedsman, her nephew,
        the boy with the barrow, an amateur botanist; pruned, watered, dug up, admired, transplanted, tied back, sowed,
        sheltered from the frost, sketched, cut down; the rhubarb, a bed of tulips, the pear trees, the hollyhocks,
        a tangle of ivy, the compost heap, the melon frame, the box hedge, some sweet peas, the mulberry; along the
        south wall, near the sundial, under glass, at the foot of the terrace, beyond the pond, in the lower orchard""",
        """the schoolmistress, a pupil, the inspector, the twins, the head boy, the drawing master, a shy newcomer,
        the caretaker's wife, the tallest girl; recited, copied out, rubbed off, forgot, explained, corrected, hid,
        illustrated, read aloud, misunderstood; the poem, a table of verbs, the map of rivers, a long division, the ink
        bottle, the spelling list, an essay on courage, the globe, a fable in Latin, the timetable; at the blackboard,
        in the back row, during recess, beneath the clock, in the draughty corridor, on the playground""",
        """the coachman, a pedlar, the toll keeper, two pilgrims, the postilion, a stranded actress, the carter,
        a surveyor, the messenger; overtook, followed, passed, inspected, cursed, abandoned, pushed, asked about,
        pointed out, avoided; the milestone, a broken axle, the ford, a flock of sheep, the muddy detour, the mail
        coach, a fallen elm, the wooden bridge, the signpost, a lame horse, the steep bend; at the crossroads, halfway
        up the hill, outside the village, where the causeway begins, on the moor, past the last farm""",
        """the mountain guide, a chamois hunter, the porter, an English climber, the goatherd, some students,
        the hut warden, the geologist, a monk; crossed, climbed, photographed, roped up for, described, dreaded, left,
        named, marked, descended; the glacier, a narrow ledge, the snowfield, the north ridge, a gully of loose scree,
        the pass, an icy couloir, the cairn, the moraine, a hanging valley; above the tree line, in thin air, before
        sunrise, near the summit, under an overhang, within sight of the pastures""",
        """the auctioneer, a fruit seller, the cloth merchant, a pickpocket, the fishwife, the money changer,
        a farmer's daughter, the tinker, a stout customer; haggled over, wrapped, praised, dropped, weighed, bought
        back, stole, displayed, refused, auctioned; a bolt of linen, the ripe figs, some pewter spoons, a caged thrush,
        the cheapest candles, a string of onions, the damaged crockery, the eels, a bargain, a bundle of kindling;
        under the awning, beside the fountain, in the arcade, between two stalls, at closing time, near the scales""",
        """the cellist, a conductor, the choirboys, the piano tuner, an elderly soprano, the critic, a street fiddler,
        the oboist, the impresario; rehearsed, tuned, applauded, transposed, hummed, interrupted, accompanied, composed,
        postponed, praised; the slow movement, a minuet, the overture, an out-of-tune harpsichord, the duet, the second
        encore, a forgotten cantata, the fugue, some folk songs, the finale; in the gallery, behind the curtain,
        at the conservatory, from the wings, in an empty salon, by candlelight""",
        """the surgeon, a nurse, the apothecary's clerk, the patient, a medical student, the midwife, the dentist,
        a worried father, the quarantine officer; bandaged, prescribed, diagnosed, boiled, swallowed, examined, ordered,
        labelled, recommended, doubted; the fever, a bitter tincture, the sprained wrist, some clean linen, the cough
        syrup, a mustard plaster, the thermometer, the rash, the dosage; on the ward, in the waiting room,
        at the bedside, behind a screen, after the rounds, in the dispensary""",
        """the notary, a junior clerk, the magistrate, the plaintiff, an heiress, the bailiff, a tax collector,
        the stenographer, his solicitor; signed, sealed, mislaid, contested, filed, dictated, witnessed, stamped,
        revised, forged; the deed, a clause about fences, the summons, the final invoice, a letter of credit, the
        affidavit, the ledger, an old mortgage, the minutes, the appeal; in chambers, at the counter, before noon,
        across the desk, in triplicate, on the second floor""",
        """the shepherd, a ploughman, the milkmaid, the tenant, a hen wife, the veterinary, the landlord's agent,
        a gang of reapers, the youngest son; sheared, harvested, drove home, fenced off, threshed, milked, stacked,
        bred, fed, rescued; the ewes, a stubborn mule, the barley, the turnip field, a litter of piglets, the hayrick,
        the brindled cow, some geese, the hop poles, a threshing machine; in the byre, at the far gate, behind the barn,
        across the stubble, by the duck pond, in the water meadow""",
        """the blacksmith, a cabinet maker, the locksmith, the potter, a journeyman, the foreman, the engraver,
        a weaver, the wheelwright; forged, planed, varnished, glazed, riveted, took apart, sanded, ground, measured,
        polished; a hinge, the oak panels, the bellows, a set of chisels, the axle grease, a crooked drawer, the kiln,
        some brass screws, the loom, a walnut cabinet; at the workbench, near the forge, in the sawdust, under the
        skylight, against the vice, out in the yard""",
        """the stationmaster, a signalman, the ticket inspector, a sleepy commuter, the stoker, the dining-car waiter,
        a bridge engineer, the luggage clerk, a governess; signalled, missed, delayed, coupled, stoked, announced,
        checked, caught, repainted, waited for; the night express, a goods wagon, the points, a trunk,
        an empty compartment, the water tower, the branch line, a season ticket, the brake van, a cloud of steam; on
        platform two, inside the tunnel, at the junction, over the viaduct, in the buffet, along the siding""",
        """the astronomer, a lecturer, the mathematician, the assistant, a sceptic, the instrument maker, her rival,
        an amateur, the academy's secretary; calculated, observed, disproved, published, recorded, calibrated, traced,
        demonstrated, questioned, translated; the orbit, a magnetic needle, the eclipse, the hypothesis, a faint nebula,
        the error in the tables, an experiment with mirrors, the lens, a theorem, the prism; through the eyepiece,
        at the congress, in a footnote, in the laboratory, from first principles, with a borrowed barometer""",
        """the sergeant, a raw recruit, the bugler, the quartermaster, a deserter, the cavalry officer, the sentry,
        an army chaplain, the mapmaker; guarded, dug, marched past, requisitioned, saluted, loaded, scouted, retook,
        surrendered, cleaned; the outpost, a shallow trench, the powder kegs, the colours, the baggage train, a captured
        cannon, the redoubt, some spare boots, the river crossing, the password; at reveille, under fire, behind
        the lines, along the rampart, in the drizzle, beside the campfire""",
        """the playwright, a leading lady, the prompter, the wardrobe mistress, an understudy, the scene painter,
        a novelist, the editor, the printer's devil; rewrote, performed, cut, whispered, mocked, stitched, typeset,
        censored, memorised, quoted; the third act, a velvet cape, the love scene, the preface, a page of proofs, the
        backdrop, a rhyming couplet, the wig, the last chapter, a cruel review; in the dressing room, before the
        footlights, at the stage door, in the margin, on opening night, in the prompt corner""",
        """the hotel manager, a chambermaid, the night porter, two honeymooners, the lift boy, a bankrupt baron, the
        concierge, an impatient colonel, the telephone girl; reserved, aired, mixed up, complained about, carried
        upstairs, tipped generously for, demanded, ironed, overlooked, returned; the adjoining suite, a trunk with brass
        corners, the bridal bouquet, the unpaid bill, a hot-water bottle, the register, some monogrammed towels, the
        billiard room, a lukewarm bath, the dinner gong; in the lobby, on the veranda, down the carpeted stairs, between
        the potted palms, at half board, opposite the casino""",
        """the reporter, a typist, the war correspondent, the proofreader, an obituary writer, a cartoonist,
        the advertising agent, a retired columnist; telegraphed, exaggerated, headlined, leaked, confirmed, denied,
        retracted, serialised, investigated, illustrated; the scandal, an anonymous letter, the front page, a royal
        engagement, the crossword, the strike, a shipping disaster, the weather forecast, the late edition, a libel
        suit; in the newsroom, from abroad, over the wire, against the deadline, beside the rotary press, in two
        columns""",
        """the miner, a pit pony driver, the explosives expert, the prospector, a union man, the assayer, the cage
        operator, a widow from the terrace, the ventilation engineer; blasted, propped up, drained, excavated, assayed,
        abandoned, staked out, reopened, lit, shovelled; the seam, a flooded gallery, the lamp room, a vein of tin, the
        winding gear, the spoil tip, an unstable shaft, the fuse, a wagon of ore, the claim; underground, at the coal
        face, near the sluice, after the whistle, in the new level, by the slag heap""",
        """the curator, an archaeologist, the taxidermist, a sleepy attendant, the collector, a visiting duchess,
        the restorer, the epigrapher, a sketching student; catalogued, unearthed, dusted, deciphered, donated, dated,
        authenticated, glued, lent, photographed; a bronze fibula, the mummy, an inscription, the butterfly cabinet,
        a mosaic, the plaster cast, some Roman tiles, a whale's jawbone, the sarcophagus, a cracked amphora; in the
        rotunda, behind velvet rope, at the dig, beneath a tarpaulin, in storage, under magnification""",
        """the tailor, a milliner, the seamstress, a dandy, the furrier, the glove maker, a bridesmaid,
        the dyer; hemmed, embroidered, tried on, pressed, lengthened, unpicked, dyed, starched, pinned, patched; the
        waistcoat, a lace collar, the ball gown, a pair of trousers, some silk stockings, the lining, an overcoat, the
        bonnet, a sash, the cuffs; in the fitting room, before the looking glass, with a blunt needle, by the yard,
        according to the pattern, on the ironing board""",
        """the balloonist, a stunt flyer, the mechanic, the meteorologist, a nervous passenger, the parachutist, the
        airfield's owner, an enthusiast from Lyon, the wireless operator; inflated, piloted, refuelled, crashed,
        trimmed, chased, tested, steered, ballasted, dismantled; the monoplane, a propeller, the gondola, the altimeter,
        a paper kite, the airship, some sandbags, the fuselage, a spare magneto, the hangar door; among the clouds, over
        the estuary, into the headwind, at dawn, above the rooftops, in a tailspin""",
    )
)

_TIMES = phrases(
    """that morning, toward evening, a week later, in those days, as a rule, on Sundays, once or twice, before long,
    at noon, during the thaw, late in autumn, after the holidays, to begin with, in the meantime, every so often,
    at the first opportunity, when the wind turned, not long ago, in spite of everything, for the time being"""
)
_CAUSES = phrases(
    """it had rained for days, no one else would, the price had fallen, the lamp had gone out, there was nothing left
    to lose, the others were late, habit is strong, the roof leaked, money was short, a promise had been made,
    the news was bad, the weather held, guests were expected, the rumour would not die down, time was short"""
)
_REACTIONS = phrases(
    """laughed, said nothing, looked away, lost patience, took notes, turned pale, shrugged, asked for an explanation,
    went on as before, felt oddly proud, began to hum, demanded silence, fetched a chair, blamed the heat, nodded
    gravely, left the room, offered to help, pretended to be asleep, made a joke of it, hesitated"""
)
_OPENINGS = phrases(
    """It is often said that, Few would deny that, Experience shows that, There is no doubt that, Strangers soon learn
    that, One must admit that, In such a trade, At that age, Among friends, In small towns, Sooner or later, All the
    same, Most people found that, Perhaps it is true that"""
)
_CLAIMS = phrases(
    """patience costs less than haste, old quarrels keep well, the simplest tool is the best, nobody likes to be
    corrected, good advice comes late, gossip travels faster than the post, a full purse makes few friends, memory
    is a poor witness, the work is never finished, every rule has its season, silence can be an answer, luck favours
    the stubborn, a borrowed coat never fits, the second attempt is the harder one, what is cheap is soon dear,
    comfort makes people forgetful, small favours are remembered, nothing dries quickly in March"""
)

_LISTS = {"time": _TIMES, "cause": _CAUSES, "reaction": _REACTIONS, "opening": _OPENINGS, "claim": _CLAIMS}

# {p}, {q} people; {d}, {e} what they did; {t}, {u} things; {l} a place; the rest from the lists of that name.
_SHAPES = (
    "{p} {d} {t} {l}.",
    "{p} {d} {t}, and {q} {e} {u}.",
    "{time}, {p} {d} {t}.",
    "{time}, {q} {reaction} because {p} {d} {t}.",
    "Because {cause}, {p} {d} {t} {l}.",
    "When {p} {d} {t}, {q} {reaction}.",
    "{p}, who {d} {t} {l}, {reaction}.",
    "Nobody could say why {p} {d} {t}.",
    "“Who {d} {t}?” asked {p} {l}.",
    "“{p} {d} {t},” said {q}, “and that was the end of it.”",
    "Between {t} and {u}, {q} {reaction}.",
    "First {p} {d} {t}; then {q} {reaction}.",
    "{opening} {claim}.",
    "{opening} {claim}, but {p} {reaction}.",
    "It was {p}, not {q}, that {d} {t} {l}.",
    "As {cause}, nothing came of it, although {p} {d} {t} {time}.",
    "{l}, {p} {d} {t} and {reaction}.",
    "Once {p} {d} {t}, even {q} {reaction}.",
)

_NOISE = phrases(
    "The road is long. | The hill is steep. | The wind is cold. | The dust is dry. | On we walk. | So goes the day.",
    "|",
)


def prose(draw: Draw) -> Iterator[str]:
    """Sentences of paragraphs, each on a topic of its own, each with the white space behind it."""
    topics: list[Topic] = []
    while True:
        topics = topics or draw.shuffled(_TOPICS)
        topic = topics.pop()
        length = 4 + draw.below(5)
        for place, shape in enumerate(draw.sample(_SHAPES, length)):
            yield _sentence(draw, topic, shape) + (" " if place + 1 < length else "\n\n")


def noise(_draw: Draw) -> Iterator[str]:
    """The same few short sentences over and over, a line of them at a time."""
    return cycle([*(sentence + " " for sentence in _NOISE[:-1]), _NOISE[-1] + "\n"])


def _sentence(draw: Draw, topic: Topic, shape: str) -> str:
    first, second = draw.sample(topic.people, 2)
    thing, other = draw.sample(topic.things, 2)
    did, too = draw.sample(topic.did, 2)
    drawn = {name: draw.choice(options) for name, options in {"l": topic.places, **_LISTS}.items()}
    sentence = shape.format(p=first, q=second, d=did, e=too, t=thing, u=other, **drawn)
    start = 1 if sentence[0] == "“" else 0
    return sentence[:start] + sentence[start].upper() + sentence[start + 1 :]
