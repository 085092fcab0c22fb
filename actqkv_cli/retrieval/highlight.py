"""Which sentences of the sources carry an answer, by the words, numbers and names that they share with it.

An answer's own terms are those that are not in the question already. Common words are no terms, nor are those with
which one speaks about a document, and not from it: "yes", or "the text does not say", has none.
"""

import math
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from actqkv_cli.retrieval.sentences import sentences

_ASKED = 0.3  # what a term of the question counts for, beside one of the answer
_ALMOST = 0.7  # of the best sentence's score: who comes near it in another source carries the answer as well
_SCRIPTS_WITHOUT_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_TERM = re.compile(
    rf"(?P<number>\d+(?:[.,]\d+)*)(?:st|nd|rd|th)?|(?P<run>[{_SCRIPTS_WITHOUT_SPACES}]+)"
    rf"|(?P<word>[^\W\d_{_SCRIPTS_WITHOUT_SPACES}]+)"
)
_HIRAGANA = re.compile("[\u3040-\u309f]+")  # of grammar, mostly
_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBERS = {word: n for n, word in enumerate(_UNITS.split())} | {
    word: 10 * n for n, word in enumerate(_TENS.split(), 2)
}
_COMPOUND = re.compile(rf"\b({'|'.join(_TENS.split())})[- ]({'|'.join(_UNITS.split()[1:10])})\b")
_ABOUT_ANSWERS = (
    "yes no true false correct incorrect answer question document text passage source context information say state "
    "mention specify provide contain give know find unknown unclear sorry unable cannot"
)


@dataclass(frozen=True)
class Highlights:
    """sentences: of each source the numbers of those that carry the answer, best first; support: the share of the
    answer's own terms that stand in any source, None where it has none or there is no source."""

    sentences: list[list[int]]
    support: float | None


def highlights(answer: str, question: str, sources: Sequence[Sequence[str]]) -> Highlights:
    """sources: the sentences of each, best source first."""
    known = [[terms(sentence) for sentence in source] for source in sources]
    asked = terms(question)
    spread: dict[str, int] = {}
    for sentence in (sentence for source in known for sentence in source):
        for term in sentence:
            spread[term] = spread.get(term, 0) + 1
    total = sum(map(len, known))
    weight = {term: math.log(1 + total / count) for term, count in spread.items()}
    found: list[list[int]] = [[] for _ in sources]
    for claim in sentences(answer):
        said = terms(answer[claim.start : claim.end]) - _common()
        for source, number in _carriers(said - asked or said, asked, known, weight):
            if number not in found[source]:
                found[source].append(number)
    own = terms(answer) - asked - _common()
    support = sum(term in spread for term in own) / len(own) if own and total else None
    return Highlights(found, support)


def _carriers(
    said: Collection[str], asked: Collection[str], sources: Sequence[Sequence[set[str]]], weight: dict[str, float]
) -> list[tuple[int, int]]:
    """The best sentence of the best source, and of every other that has one about as good: (source, sentence)."""
    unseen = max(weight.values(), default=0.0)
    whole = sum(weight.get(term, unseen) for term in said)

    def score(sentence: set[str]) -> float:
        shared = sum(weight[term] for term in sentence.intersection(said))
        beside = sum(weight[term] for term in sentence.intersection(asked))
        # The four of "four knots" may be that of anything, where the rest of the sentence is about something else.
        return shared + _ASKED * beside if shared and (beside or shared > whole / 2) else 0.0

    best = []
    for source, known in enumerate(sources):
        scores = [score(sentence) for sentence in known]
        if any(scores):
            best.append((max(scores), source, scores.index(max(scores))))
    threshold = _ALMOST * max(best, default=(0.0, 0, 0))[0]
    return [(source, number) for reached, source, number in best if reached >= threshold]


def terms(text: str) -> set[str]:
    """What a text is about: stems of its words, its numbers, and pairs of characters where no spaces part the words."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    plain = unicodedata.normalize("NFKC", re.sub("[\u0300-\u036f]", "", plain)).replace("’", "'")
    plain = _COMPOUND.sub(lambda match: str(_NUMBERS[match[1]] + _NUMBERS[match[2]]), plain)
    found: set[str] = set()
    words = []
    for match in _TERM.finditer(plain):
        if number := match["number"]:
            found.add(re.sub(r",(?=\d{3}(?!\d))", "", number).replace(",", "."))
        elif run := match["run"]:
            pairs = {run[at : at + 2] for at in range(max(1, len(run) - 1))}
            found |= {pair for pair in pairs if not _HIRAGANA.fullmatch(pair)}
        elif (word := match["word"]) in _NUMBERS:
            found.add(str(_NUMBERS[word]))
        else:
            words.append(word)
    return found | {*_stemmer().stemWords([word for word in words if word not in _stop_words()])}


@cache
def _stemmer() -> Any:
    import Stemmer

    return Stemmer.Stemmer("english")  # does other languages no harm: both sides are cut alike


@cache
def _stop_words() -> frozenset[str]:
    from bm25s.stopwords import STOPWORDS_EN_PLUS

    return frozenset(STOPWORDS_EN_PLUS)


@cache
def _common() -> frozenset[str]:
    return frozenset(terms(_ABOUT_ANSWERS))
