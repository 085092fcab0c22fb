"""Passkey, number and key-value retrieval after InfiniteBench (Zhang et al. 2024); single, multi-key, multi-value and
multi-query needles and variable tracking after RULER (Hsieh et al. 2024). The logic is theirs, the wording ours."""

from collections.abc import Iterator, Sequence
from itertools import chain, count, islice, pairwise

from actqkv_cli.bench.generators.document import Plan, Question
from actqkv_cli.bench.generators.draw import Draw
from actqkv_cli.bench.generators.words import ADJECTIVES, NOUNS

VALUES = 4  # of a key, and keys of a question, where there are several
HOPS = 4
_KEY = "The secret number kept under {} is {}."


def passkey(draw: Draw, questions: int, filler: Iterator[str]) -> Plan:
    """A 5-digit key for each of many things."""
    return _labelled(draw, draw.integers(5, questions), "pass key", filler)


def number(draw: Draw, questions: int, filler: Iterator[str]) -> Plan:
    """As `passkey`, with 10 digits: 5 drawn, and five times one of those there so far doubled, so that the neighbours
    repeat and are easily miscounted."""
    values: dict[str, None] = {}
    while len(values) < questions:
        digits = draw.integers(5, 1)[0]
        for _ in range(5):
            place = draw.below(len(digits))
            digits = digits[:place] + digits[place] + digits[place:]
        values[digits] = None
    return _labelled(draw, list(values), "serial number", filler)


def _labelled(draw: Draw, values: list[str], label: str, filler: Iterator[str]) -> Plan:
    adjectives, nouns = draw.sample(ADJECTIVES, len(values)), draw.sample(NOUNS, len(values))
    asked = []
    for value, adjective, noun in zip(values, adjectives, nouns, strict=True):
        thing = f"the {adjective} {noun}"
        text = f"What is the {label} of {thing}? Answer with the digits only."
        needle = f"The {label} of {thing} is {value}. Keep it in mind: {value} belongs to {thing}."
        asked.append(Question(text, (value,), (needle,), f"The {label} of {thing} is"))
    return Plan.in_turn(asked, filler)


def kv(draw: Draw, questions: int, filler: Iterator[str]) -> Plan:
    """A JSON object of UUIDs by UUID. filler: `kv_pairs`."""
    asked = []
    for key, value in [(draw.uuid(), draw.uuid()) for _ in range(questions)]:
        text = f'Which value stands behind the key "{key}" in the JSON object? Answer with the value only.'
        asked.append(Question(text, (value,), (f'"{key}": "{value}",',), f'The value behind "{key}" is'))
    return Plan.in_turn(asked, filler, ("{", f'"{draw.uuid()}": "{draw.uuid()}"}}'))


def kv_pairs(draw: Draw) -> Iterator[str]:
    """Pairs that nobody asks for, without end."""
    return (f'"{draw.uuid()}": "{draw.uuid()}", ' for _ in count())


def niah_single(draw: Draw, questions: int, filler: Iterator[str]) -> Plan:
    """A 7-digit number under each of a few keys."""
    keys = draw.sample(_all_keys(), questions)
    return _keyed(keys, draw.integers(7, questions), filler)


def niah_multikey(draw: Draw, questions: int, filler: Iterator[str]) -> Plan:
    """As `niah_single`, but before every sentence stands the number of a key that nobody asks for, as long as there are
    keys: some 46,000, enough for more than a million tokens."""
    keys = draw.shuffled(_all_keys())
    values = draw.integers(7, len(keys))
    distractors = (_KEY.format(*pair) + " " for pair in zip(keys[questions:], values[questions:], strict=True))
    crowded = chain.from_iterable(chain(islice(distractors, 1), [sentence]) for sentence in filler)
    return _keyed(keys[:questions], values[:questions], crowded)


def _keyed(keys: list[str], values: list[str], filler: Iterator[str]) -> Plan:
    asked = []
    for key, value in zip(keys, values, strict=True):
        text, prefix = f"Which secret number is kept under {key}?", f"The secret number kept under {key} is"
        asked.append(Question(text, (value,), (_KEY.format(key, value),), prefix))
    return Plan.in_turn(asked, filler)


def niah_multivalue(draw: Draw, questions: int, filler: Iterator[str]) -> Plan:
    """Four numbers under each key, far from one another, and all of them wanted."""
    values = _batched(draw.integers(7, VALUES * questions), VALUES)
    asked = []
    for key, numbers in zip(draw.sample(_all_keys(), questions), values, strict=True):
        text = f"Which {VALUES} secret numbers are kept under {key}? Name all of them."
        needles = tuple(f"One of the secret numbers kept under {key} is {number}." for number in numbers)
        asked.append(Question(text, numbers, needles, f"The secret numbers kept under {key} are"))
    return Plan.interleaved(draw, asked, filler)


def niah_multiquery(draw: Draw, questions: int, filler: Iterator[str]) -> Plan:
    """One number under each key, and four keys, far from one another, asked for at once."""
    values = _batched(draw.integers(7, VALUES * questions), VALUES)
    asked = []
    for keys, numbers in zip(_batched(draw.sample(_all_keys(), VALUES * questions), VALUES), values, strict=True):
        listed = ", ".join(keys[:-1]) + " and " + keys[-1]
        text = f"Which secret numbers are kept under {listed}? Name all of them, in this order."
        needles = tuple(map(_KEY.format, keys, numbers))
        asked.append(Question(text, numbers, needles, f"The secret numbers kept under {listed} are"))
    return Plan.interleaved(draw, asked, filler)


def vt(draw: Draw, questions: int, filler: Iterator[str]) -> Plan:
    """Chains of assignments, each name set to the one before it, the first to a number; all names are wanted."""
    size = HOPS + 1
    names: dict[str, None] = {}
    while len(names) < size * questions:
        names["".join(draw.choice("BCDFGHJKLMNPQRSTVWXZ") for _ in range(5))] = None  # without vowels: no word
    asked = []
    for variables, value in zip(_batched(list(names), size), draw.integers(5, questions), strict=True):
        text = f"Which variables hold the value {value}, be it directly or by way of others? Name all {size} of them."
        terms = [value, *(f"VAR {name}" for name in variables)]
        needles = tuple(f"{term} = {before}." for before, term in pairwise(terms))
        asked.append(Question(text, variables, needles, f"The {size} variables that hold {value} are"))
    return Plan.interleaved(draw, asked, filler)


def _batched(items: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(items[start : start + size]) for start in range(0, len(items), size)]


def _all_keys() -> list[str]:
    return [f"{adjective}-{noun}" for adjective in ADJECTIVES for noun in NOUNS]
