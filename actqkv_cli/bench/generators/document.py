"""A document made to measure: filler with needles in it, of a wanted number of tokens."""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, cycle, islice, pairwise

from actqkv_cli.bench.generators.draw import Draw
from actqkv_cli.errors import UsageError

# Of the text, that hold no needle. The first tokens (sink) are attended to whatever is retrieved, and the last by
# `streaming`, so that a needle there would test nothing; from 9,000 tokens on, the margins cover both in full.
_MARGIN_START, _MARGIN_END = 0.04, 0.06
_MIN_FILL, _TARGET_FILL = 0.97, 0.985  # of the tokens asked for

_HINT = "make the documents longer, or ask fewer questions"
_FIRST_TRY = 64  # sentences of a first measurement
_MAX_SENTENCE = 400  # characters of a "sentence"; a table has no full stops
_SENTENCE_END = re.compile(
    r"""(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!\bNo)(?<!\b[A-Z])[.!?…]["'”’)\]]*\s+|[。！？]|\n\s*\n"""
)
_PIECE = re.compile(rf"(?s).{{1,{_MAX_SENTENCE}}}(?:\s+|$)|.{{1,{_MAX_SENTENCE}}}")


@dataclass(frozen=True)
class Document:
    """A text, and the characters [start, end) of each needle in it."""

    text: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Question:
    """needles: the sentences that the answers stand in, in the same order."""

    text: str
    answers: tuple[str, ...]
    needles: tuple[str, ...]
    prefix: str = ""


@dataclass(frozen=True)
class Plan:
    """What a document is made of. needles: all different, in the order in which they stand in it; filler: without end,
    each piece with the white space behind it; ends: what stands before and behind all else."""

    needles: Sequence[str]
    questions: Sequence[Question]
    filler: Iterator[str]
    ends: tuple[str, str] = ("", "")

    @classmethod
    def in_turn(cls, questions: Sequence[Question], filler: Iterator[str], ends: tuple[str, str] = ("", "")) -> "Plan":
        """With the needles of one question after the other."""
        return cls([needle for question in questions for needle in question.needles], questions, filler, ends)

    @classmethod
    def interleaved(cls, draw: Draw, questions: Sequence[Question], filler: Iterator[str]) -> "Plan":
        """With the first needles of all questions, then the second ones, and so on, each time in another order: those
        of every question go through the whole document. All questions have as many."""
        parts = range(len(questions[0].needles))
        needles = [question.needles[part] for part in parts for question in draw.shuffled(questions)]
        return cls(needles, questions, filler)


def sentences_of(text: str) -> list[str]:
    """The sentences of any text, each with the white space behind it; together they are the text, ended by a blank
    line. Raises UsageError if there is no text."""
    text = text.strip()
    if not text:
        raise UsageError("the haystack is empty", "give a text of at least a few sentences")
    text += "\n\n"
    borders = [0, *(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
    return [piece for begin, end in pairwise(borders) for piece in _PIECE.findall(text[begin:end])]


def repeat_sentences(haystack: str) -> Iterator[str]:
    """The sentences of a text, over and over. Raises UsageError if there is no text."""
    return cycle(sentences_of(haystack))


def take_first(filler: Iterator[str]) -> Callable[[int], list[str]]:
    """A function that returns the first so many sentences, any number of times."""
    taken: list[str] = []

    def first(number: int) -> list[str]:
        taken.extend(islice(filler, max(0, number - len(taken))))
        return taken[:number]

    return first


def fit_filler(
    build: Callable[[int], Document], tokens: int, count: Callable[[str], int], start: int = _FIRST_TRY
) -> int:
    """The number of filler sentences with which `build` makes a document of _MIN_FILL to all of `tokens`.

    `count` sees the needles alone, then the document of `start` sentences, then mostly one or two of about the right
    length: text is nearly linear in its sentences. Raises UsageError if no number of them fits.
    """
    needles = count(build(0).text)
    number, low, high = start, 0, 0  # low fits; high is too many, 0 as long as none is known
    while needles < tokens:
        size = count(build(number).text)
        if _MIN_FILL * tokens <= size <= tokens:
            return number
        low, high = (number, high) if size < tokens else (low, number)
        if high and high - low <= 1:
            break
        rate = max(size - needles, 1) / number
        number = max(low + 1, int((_TARGET_FILL * tokens - needles) / rate))
        if high and number >= high:
            number = (low + high) // 2
    raise UsageError(f"{tokens} tokens are too few for the needles", _HINT)


def plant(plan: Plan, tokens: int, count: Callable[[str], int]) -> Document:
    """The plan's needles evenly spread through as much filler as makes _MIN_FILL to all of `tokens`.

    Raises UsageError if they cannot stand apart from one another and from the margins.
    """
    sentences = take_first(plan.filler)

    def build(number: int) -> Document:
        return _spread(plan, sentences(number))

    document = build(fit_filler(build, tokens, count))
    first, last = document.spans[0][0], document.spans[-1][1]
    if first < _MARGIN_START * len(document.text) or last > (1 - _MARGIN_END) * len(document.text):
        raise UsageError(f"{len(plan.needles)} needles do not fit into {tokens} tokens", _HINT)
    return document


def plant_at_depth(needle: str, sentences: Sequence[str], depth: float) -> Document:
    """The needle at that share of the text, in [0, 1], moved back to the end of a sentence; 1 is the very end."""
    ends = list(accumulate(map(len, sentences), initial=0))
    before = bisect_right(ends, depth * ends[-1]) - 1
    pieces = [(sentence, False) for sentence in sentences]
    return _join([*pieces[:before], (needle, True), *pieces[before:]], ("", ""))


def _spread(plan: Plan, sentences: Sequence[str]) -> Document:
    """Every needle at the border of sentences nearest to its place, with a sentence at least between any two. Those
    for which there are not enough stand at the end."""
    total = sum(map(len, [*plan.ends, *plan.needles, *sentences]))
    step = (1 - _MARGIN_START - _MARGIN_END) * total / len(plan.needles)
    pieces: list[tuple[str, bool]] = []
    length = used = 0
    for sentence in sentences:
        if used < len(plan.needles):
            needle = plan.needles[used]
            middle = length + len(needle) / 2
            if middle + len(sentence) / 2 >= _MARGIN_START * total + (used + 0.5) * step:
                pieces.append((needle, True))
                length += len(needle)
                used += 1
        pieces.append((sentence, False))
        length += len(sentence)
    return _join(pieces + [(needle, True) for needle in plan.needles[used:]], plan.ends)


def _join(pieces: Sequence[tuple[str, bool]], ends: tuple[str, str]) -> Document:
    """The pieces between the ends. A piece that is marked is a needle: it stands apart from its neighbours."""
    texts, length, spans = [ends[0]], len(ends[0]), []
    for piece, is_needle in pieces:
        text = piece
        if is_needle:
            gap = "" if not texts[-1] or texts[-1][-1].isspace() else " "
            spans.append((length + len(gap), length + len(gap + piece)))
            text = f"{gap}{piece} "
        texts.append(text)
        length += len(text)
    return Document("".join([*texts, ends[1]]).rstrip(), tuple(spans))
