"""Words for keys, and invented names."""

from actqkv_cli.bench.generators.draw import Draw


def phrases(text: str, separator: str | None = ",") -> tuple[str, ...]:
    """The parts of a text (None: its words), with their line breaks and indentation made single spaces."""
    return tuple(" ".join(part.split()) for part in text.split(separator))


ADJECTIVES = phrases(
    """able agile amber ample ancient arched awake azure bashful blunt bold brass brave breezy brief bright brisk
    broad bronze calm candid careful cheerful chilly civil clear clever coastal common cosmic crisp curious curly
    daring dense distant dizzy dusty eager early earnest eastern elder elegant faint fancy fearless fertile festive
    final flat fluent fond formal fragile frank fresh frosty frugal gentle giddy glad gloomy golden graceful grand
    grateful hardy hasty hearty hidden hollow honest humble hungry icy idle inner ivory jolly keen kind lasting lavish
    lean level limber lively lofty lonely loud loyal lucid lunar mellow merry mighty mild misty modest muddy narrow
    neat nimble noble northern oaken odd orderly outer pale patient peaceful plain pleasant plump polite proud prudent
    quaint quick quiet rapid rare restless ripe robust rosy royal rugged rustic sandy scarlet secret serene shady sharp
    shiny silent silver simple sleek sleepy slender smooth snug sober solar solemn solid southern spare spicy spiral
    steady steep stern still stormy sturdy subtle sunny supple sweet swift tall tame tender tidy timid tiny tranquil
    trusty upper urban vast velvet violet vivid warm wary watery western whole wild windy wise witty wooden young
    zesty""",
    None,
)

NOUNS = phrases(
    """acorn almond anchor anvil apron arrow badger bamboo banner barrel basin beacon beaver beetle bellows biscuit
    blanket blossom bonnet bottle boulder bramble bridge bristle broom bucket buckle button cabin cactus candle canoe
    canvas canyon carpet castle cavern cedar cellar chalk cherry chimney chisel cliff cloak clover cobble comet compass
    copper coral cottage cradle crane crater cricket crown crystal curtain daisy desert donkey dragon drum eagle easel
    ember engine falcon feather fern ferry fiddle finch flannel flute forest fountain fox gallery garland garnet gate
    geyser ginger glacier glove goblet gravel grove guitar hammer hammock harbour harness harp hazel hedge helmet heron
    hinge holly honey hornet island ivy jacket jasmine jewel juniper kettle keyhole kitten ladder lagoon lantern larch
    lattice laurel leaf ledger lemon lentil lever lichen lily linen lizard locket loom magnet magpie mallet mantle
    maple marble marigold market marsh meadow medal melon mill mirror mitten monsoon mortar moth muffin mustard nectar
    needle nutmeg oasis oboe ocean olive onion orchard orchid otter oven oyster paddle palace pantry paper parcel
    parrot pebble pelican pepper pier pigeon pillow pine planet plum pocket pond poppy prairie prism pulley pumpkin
    quartz quill quilt rabbit raft rattle raven reed ribbon river robin rocket rudder saddle saffron salmon sandal
    sapphire saucer scarf sequoia shadow shawl shell shovel sleigh sparrow spindle spoon squirrel stable statue sundial
    swallow tambourine teapot temple thimble thistle throne timber tower trellis trumpet tulip tunnel turnip turtle
    valley vase violin walnut wharf whistle willow window wren yarn zipper""",
    None,
)

_GIVEN = phrases("Al Bren Cal Dor Ed Fen Gar Hel Is Jor Kal Lor Mar Nor Os Per Ros Sel Tor Vel", None)
_GIVEN_ENDS = phrases("ric wen vin mund ette linde ander isa omar ulf enka iane", None)
_FAMILY = phrases(
    "Ash Birk Cray Dunn Elm Farr Gild Hal Ing Kess Lind Mor Nett Oak Pell Quill Rav Stroud Thorn Wick", None
)
_FAMILY_ENDS = phrases(
    "brook dale er ford gate ham holt ing ison ley man mere ridge sby stone thwaite ton ward well worth", None
)
_TOWNS = phrases("Aven Bor Cald Drum Erl Fald Gren Hov Ister Karl Lyn Mold Nar Orm Pren Rask Sund Tarn Ul Varn", None)
_TOWN_ENDS = phrases("abad berg brack dorf ensk evo fjord grad holm ica mouth nitz ora polis lund vik", None)


def person(draw: Draw) -> str:
    """One of nearly a hundred thousand."""
    return f"{draw.choice(_GIVEN)}{draw.choice(_GIVEN_ENDS)} {draw.choice(_FAMILY)}{draw.choice(_FAMILY_ENDS)}"


def town(draw: Draw) -> str:
    """One of 320."""
    return draw.choice(_TOWNS) + draw.choice(_TOWN_ENDS)
