"""Short invented facts in prose, asked for in other words: no word that matters in a question stands in its fact, so
that plain word search does not find it."""

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice, product
from typing import NamedTuple

from actqkv_cli.bench.generators.document import Plan, Question
from actqkv_cli.bench.generators.draw import Draw
from actqkv_cli.bench.generators.words import person, phrases, town


class Template(NamedTuple):
    """{it}: a place, in the fact by its name, in the question by what it is; {answer}: only in the fact."""

    fact: str
    question: str
    answer: Callable[[Draw], str]


def _one_of(text: str) -> Callable[[Draw], str]:
    items = phrases(text)
    return lambda draw: draw.choice(items)


def _year(draw: Draw) -> str:
    return str(1410 + draw.below(490))


def _number(draw: Draw) -> str:
    return str(24 + draw.below(970))


PLACES = (
    ("the lighthouse", "the tower that warns ships"),
    ("the bakery", "the shop that sells bread"),
    ("the printing house", "the works where newspapers are made"),
    ("the orphanage", "the home for children without parents"),
    ("the observatory", "the building from which the stars are watched"),
    ("the brewery", "the place where beer is made"),
    ("the granary", "the store for corn"),
    ("the infirmary", "the institution where the sick are nursed"),
    ("the chapel", "the little church"),
    ("the theatre", "the hall where plays are put on"),
    ("the tannery", "the workshop that turns hides into leather"),
    ("the ropewalk", "the long shed where cables are twisted"),
    ("the bathhouse", "the establishment for washing oneself"),
    ("the prison", "the jail"),
    ("the library", "the rooms where one can borrow novels"),
    ("the pharmacy", "the shop for medicines"),
    ("the mint", "the workshop where coins are struck"),
    ("the sawmill", "the works where logs become boards"),
    ("the glass foundry", "the works for bottles and panes"),
    ("the inn", "the lodging for travellers"),
    ("the weather station", "the hut where wind and rain are measured"),
    ("the customs post", "the office where duty is levied"),
    ("the monastery", "the abode of the friars"),
    ("the telegraph office", "the counter from which wires were cabled"),
    ("the courthouse", "the seat of the judges"),
    ("the armoury", "the depot for weapons"),
    ("the livery stable", "the business that hires out horses"),
    ("the boathouse", "the shed for rowing vessels"),
    ("the creamery", "the plant where butter is churned"),
    ("the laundry", "the business where dirty linen is taken"),
    ("the ballroom", "the hall for dancing"),
    ("the embassy", "the residence of the foreign envoy"),
)

_WOOD = _one_of("larch, ebony, teak, sycamore, rosewood, cypress, mahogany, birch, hornbeam, cedar")
_COLOUR = _one_of("turquoise, crimson, ochre, lilac, vermilion, salmon pink, lime green, indigo, mauve, lemon yellow")
_ANIMAL = _one_of("badger, pelican, unicorn, salamander, hedgehog, lynx, stork, porcupine, beaver, swan")
_NAME = _one_of("Thistle, Bramble, Pippin, Nimrod, Juno, Barnaby, Sorrel, Caesar, Biscuit, Magpie, Tansy, Rollo")
_DISH = _one_of(
    """plum dumplings, pickled trout, pheasant pie, lentil soup, smoked mackerel, buckwheat pancakes, stuffed peppers,
    roast chestnuts, hare in red wine, apple fritters"""
)
_LOOT = _one_of(
    """a silver teapot, an ivory comb, a chess board, a stuffed parrot, a garnet ring, a tortoiseshell box, a harp,
    a pair of skates, an opal brooch, a fur hat"""
)
_TUNES = (
    _one_of("The Copper, The Drowned, The Laughing, The Seventh, The Crooked, The Winter"),
    _one_of("Heron, Bridegroom, Carousel, Nightingale, Chandelier, Sparrow"),
)


def _tune(draw: Draw) -> str:
    return " ".join(part(draw) for part in _TUNES)


def _templates(answers: Sequence[Callable[[Draw], str]], text: str) -> tuple[Template, ...]:
    """One from each line, a fact and its question, with the answers in turn."""
    pairs = [line.strip().rpartition(". ") for line in text.strip().splitlines()]
    return tuple(Template(f"{fact}.", question, answer) for (fact, _, question), answer in zip(pairs, cycle(answers)))


KINDS: dict[str, tuple[Template, ...]] = {
    "who": _templates(
        [person],
        """
        The plans for {it} were drawn by {answer}. Who was the architect of {it}?
        For many years {answer} held the keys to {it}. Who was the caretaker of {it}?
        The quarrel over {it} ended when {answer} gave way. Who yielded in the row about {it}?
        {answer} was arrested for taking lead from the roof of {it}. Which thief robbed {it}?
        Visitors to {it} are shown round by {answer}. Who guides the guests through {it}?
        The portrait in the vestibule of {it} shows {answer}. Whose picture hangs in {it}?
        In the will of {answer} a fortune was left to {it}. Which benefactor endowed {it}?
        """,
    ),
    "what": _templates(
        [_NAME, _WOOD, _COLOUR, _DISH, _ANIMAL, _LOOT, _tune],
        """
        The guard dog at {it} answers to {answer}. What is the name of the hound that protects {it}?
        Every door of {it} is of solid {answer}. What timber are the entrances to {it} made from?
        The outer walls of {it} are now {answer}. What colour is the facade of {it}?
        On feast days the staff of {it} eat {answer}. What do the employees of {it} dine on at holidays?
        The crest above the gate of {it} bears a {answer}. What creature is on the coat of arms of {it}?
        The burglars found nothing in {it} but {answer}. What was the only loss when {it} was broken into?
        When {it} was opened, the band performed “{answer}”. What music was heard at the inauguration of {it}?
        """,
    ),
    "where": _templates(
        [town],
        """
        The bricks for {it} were shipped from {answer}. Where did the building material of {it} originate?
        The old records of {it} can be seen in {answer}. Where are the archives of {it}?
        The founder of {it} lies buried in {answer}. Where is the grave of the person who established {it}?
        A smaller copy of {it} was put up in {answer}. Where does a replica of {it} stand?
        Throughout the war the silver of {it} was hidden in {answer}. Where were the valuables of {it} safe?
        Those who earn their wages at {it} mostly walk over from {answer}. Where do the workers of {it} live?
        The owner of {it} spends every summer in {answer}. Where is the proprietor of {it} in July?
        """,
    ),
    "when": _templates(
        [_year],
        """
        A fire left nothing standing of {it} in {answer}. When did {it} burn down?
        Gas lamps gave way to electric light in {it} in {answer}. When was {it} connected to current?
        The first woman was hired at {it} in {answer}. When did {it} begin to employ female personnel?
        The state bought {it} from its heirs in {answer}. When did {it} become government property?
        The river rose and swept off the steps of {it} in {answer}. When did a flood damage {it}?
        The queen paid a visit to {it} in {answer}. When was {it} honoured by a royal guest?
        The storm of {answer} cost {it} its clock. When did {it} lose the timepiece in a gale?
        """,
    ),
    "how many": _templates(
        [_number],
        """
        Up to the door of {it} lead {answer} steps. How many stairs must one climb to enter {it}?
        The front of {it} has {answer} windows. How many panes let daylight into {it}?
        The yearly rent of {it} is {answer} crowns. How much does it cost to lease {it} for twelve months?
        In the cellar of {it} lie {answer} barrels. How many casks are kept underneath {it}?
        A petition against {it} drew {answer} names. How many people signed the protest about {it}?
        The roof of {it} took {answer} cartloads of slate. How many wagons of tiles went to cover {it}?
        A hedge of {answer} roses runs round {it}. How many flowering bushes surround {it}?
        """,
    ),
}


def facts(draw: Draw, questions: int, filler: Iterator[str]) -> Plan:
    """As many facts, the kinds in turn, each a template with a place of which it tells nothing else."""
    pairs = {kind: draw.shuffled(list(product(templates, PLACES))) for kind, templates in KINDS.items()}
    kinds = draw.shuffled(list(KINDS))
    asked: list[Question] = []
    for kind in islice(cycle(kinds), questions):
        template, (named, described) = pairs[kind].pop()
        answer = template.answer(draw)
        while any(answer in other.answers[0] or other.answers[0] in answer for other in asked):
            answer = template.answer(draw)
        fact = template.fact.format(it=named, answer=answer)
        needle = fact[0].upper() + fact[1:]
        asked.append(Question(template.question.format(it=described), (answer,), (needle,)))
    return Plan.in_turn(asked, filler)
