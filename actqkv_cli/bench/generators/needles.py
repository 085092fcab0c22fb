"""Passkey, number and key-value retrieval after InfiniteBench (Zhang et al. 2024); single, multi-key, multi-value and
multi-query needles and variable tracking after RULER (Hsieh et al. 2024). The logic is theirs, the wording ours."""

from collections.abc import Iterator
from itertools import chain, count, islice

from actqkv_cli.bench.generators.document import Plan, Question, repeated
from actqkv_cli.bench.generators.draw import Draw
from actqkv_cli.bench.generators.prose import noise, prose
from actqkv_cli.bench.generators.words import ADJECTIVES, NOUNS
from actqkv_cli.errors import UsageError

VALUES = 4  # of a key, and keys of a question, where there are several
HOPS = 4
_KEY = "The secret number kept under {key} is {value}."


def passkey(draw: Draw, questions: int, haystack: str | None) -> Plan:
    """A 5-digit key for each of many things, among noise."""
    return _things(draw, draw.integers(5, questions), "pass key", haystack)


def number(draw: Draw, questions: int, haystack: str | None) -> Plan:
    """As `passkey`, with 10 digits: 5 drawn, and five times one of those there so far doubled, so that the neighbours
    repeat and are easily miscounted."""
    values: dict[str, None] = {}
    while len(values) < questions:
        digits = draw.integers(5, 1)[0]
        for _ in range(5):
            place = draw.below(len(digits))
            digits = digits[:place] + digits[place] + digits[place:]
        values[digits] = None
    return _things(draw, list(values), "serial number", haystack)


def _things(draw: Draw, values: list[str], what: str, haystack: str | None) -> Plan:
    adjectives, nouns = draw.sample(ADJECTIVES, len(values)), draw.sample(NOUNS, len(values))
    needles, questions = [], []
    for place, (value, adjective, noun) in enumerate(zip(values, adjectives, nouns, strict=True)):
        thing = f"the {adjective} {noun}"
        needles.append(f"The {what} of {thing} is {value}. Keep it in mind: {value} belongs to {thing}.")
        text = f"What is the {what} of {thing}? Answer with the digits only."
        questions.append(Question(text, (value,), (place,), f"The {what} of {thing} is"))
    return Plan(tuple(needles), tuple(questions), noise() if haystack is None else repeated(haystack))


def kv(draw: Draw, questions: int, haystack: str | None) -> Plan:
    """A JSON object of UUIDs by UUID. Raises UsageError for a haystack: there is no place for one."""
    if haystack is not None:
        raise UsageError("kv makes its whole document itself", "leave out the haystack")
    pairs = [(draw.uuid(), draw.uuid()) for _ in range(questions)]
    asked = tuple(
        Question(
            f'Which value stands behind the key "{key}" in the JSON object? Answer with the value only.',
            (value,),
            (place,),
            f'The value behind "{key}" is',
        )
        for place, (key, value) in enumerate(pairs)
    )
    filler = (f'"{draw.uuid()}": "{draw.uuid()}", ' for _ in count())
    last = f'"{draw.uuid()}": "{draw.uuid()}"}}'
    return Plan(tuple(f'"{key}": "{value}",' for key, value in pairs), asked, filler, ("{", last))


def niah_single(draw: Draw, questions: int, haystack: str | None) -> Plan:
    """A 7-digit number under each of a few keys, in prose."""
    keys = draw.sample(_all_keys(), questions)
    return _keyed(keys, draw.integers(7, questions), _filler(draw, haystack))


def niah_multikey(draw: Draw, questions: int, haystack: str | None) -> Plan:
    """As `niah_single`, but before every sentence stands the number of a key that nobody asks for, as long as there are
    keys: some 46,000, enough for more than a million tokens."""
    keys = draw.shuffled(_all_keys())
    values = draw.integers(7, len(keys))
    others = zip(keys[questions:], values[questions:], strict=True)
    distractors = (_KEY.format(key=key, value=value) + " " for key, value in others)

    def crowded(filler: Iterator[str]) -> Iterator[str]:
        for sentence in filler:
            yield from chain(islice(distractors, 1), [sentence])

    return _keyed(keys[:questions], values[:questions], crowded(_filler(draw, haystack)))


def _keyed(keys: list[str], values: list[str], filler: Iterator[str]) -> Plan:
    questions = tuple(
        Question(
            f"Which secret number is kept under {key}?", (value,), (place,), f"The secret number kept under {key} is"
        )
        for place, (key, value) in enumerate(zip(keys, values, strict=True))
    )
    needles = tuple(_KEY.format(key=key, value=value) for key, value in zip(keys, values, strict=True))
    return Plan(needles, questions, filler)


def niah_multivalue(draw: Draw, questions: int, haystack: str | None) -> Plan:
    """Four numbers under each key, far from one another, and all of them wanted."""
    values = draw.integers(7, VALUES * questions)
    keys = draw.sample(_all_keys(), questions)
    order, places = _interleaved(draw, questions, VALUES)
    needles = tuple(
        f"One of the secret numbers kept under {keys[group]} is {values[VALUES * group + part]}."
        for group, part in order
    )
    asked = tuple(
        Question(
            f"Which {VALUES} secret numbers are kept under {key}? Name all of them.",
            tuple(values[VALUES * group : VALUES * (group + 1)]),
            places[group],
            f"The secret numbers kept under {key} are",
        )
        for group, key in enumerate(keys)
    )
    return Plan(needles, asked, _filler(draw, haystack))


def niah_multiquery(draw: Draw, questions: int, haystack: str | None) -> Plan:
    """One number under each key, and four keys, far from one another, asked for at once."""
    values = draw.integers(7, VALUES * questions)
    keys = draw.sample(_all_keys(), VALUES * questions)
    order, places = _interleaved(draw, questions, VALUES)
    flat = [VALUES * group + part for group, part in order]
    needles = tuple(_KEY.format(key=keys[each], value=values[each]) for each in flat)
    asked = []
    for group in range(questions):
        own = slice(VALUES * group, VALUES * (group + 1))
        listed = ", ".join(keys[own][:-1]) + " and " + keys[own][-1]
        asked.append(
            Question(
                f"Which secret numbers are kept under {listed}? Name all of them, in this order.",
                tuple(values[own]),
                places[group],
                f"The secret numbers kept under {listed} are",
            )
        )
    return Plan(needles, tuple(asked), _filler(draw, haystack))


def vt(draw: Draw, questions: int, haystack: str | None) -> Plan:
    """Chains of assignments, each name set to the one before it, the first to a number; all names are wanted."""
    size = HOPS + 1
    names: dict[str, None] = {}
    while len(names) < size * questions:
        names["".join(draw.choice("BCDFGHJKLMNPQRSTVWXZ") for _ in range(5))] = None  # without vowels: no word
    name, values = list(names), draw.integers(5, questions)
    order, places = _interleaved(draw, questions, size)
    needles = []
    for group, part in order:
        own = size * group + part
        needles.append(f"VAR {name[own]} = {f'VAR {name[own - 1]}' if part else values[group]}.")
    asked = tuple(
        Question(
            f"Which variables hold the value {value}, be it directly or by way of others? Name all {size} of them.",
            tuple(name[size * group : size * (group + 1)]),
            places[group],
            f"The {size} variables that hold {value} are",
        )
        for group, value in enumerate(values)
    )
    return Plan(tuple(needles), asked, noise() if haystack is None else repeated(haystack))


def _interleaved(draw: Draw, groups: int, parts: int) -> tuple[list[tuple[int, int]], list[tuple[int, ...]]]:
    """(group, part) in the document's order, part by part so that each group goes through the whole document; and,
    per group, the places of its parts."""
    order = [(group, part) for part in range(parts) for group in draw.shuffled(range(groups))]
    place = {each: number for number, each in enumerate(order)}
    return order, [tuple(place[group, part] for part in range(parts)) for group in range(groups)]


def _all_keys() -> list[str]:
    return [f"{adjective}-{noun}" for adjective in ADJECTIVES for noun in NOUNS]


def _filler(draw: Draw, haystack: str | None) -> Iterator[str]:
    return prose(draw) if haystack is None else repeated(haystack)
