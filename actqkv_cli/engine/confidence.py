"""How far an answer can be trusted: whether it declines, and how likely it is to be right."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from actqkv_cli.engine.answer import Answer

# Logistic regressions on answers of the 1.5B model to 120 natural questions over 16K tokens, half of them questions of
# another document. Weights of a bias, of the answer's mean log-likelihood, and of the ranking's strength.
_ANSWERABLE = -6.18, 4.81, 1.29
_RIGHT = -2.98, 6.54, 0.58
_LEAST = 0.25  # two thirds of those other questions fall below it, and few of the rest

_TELLS = "say|state|mention|specif|provide|contain|answer|include|give|tell"
_DECLINES = re.compile(
    rf"\b(?:document|text|passage|context)\b.{{0,20}}(?:not|n't|n’t|no)\b.{{0,20}}(?:{_TELLS}|information)"
    rf"|\bnot (?:explicitly |directly )?(?:{_TELLS})|\bnot in the (?:document|text)"
    r"|\bno (?:information|answer|mention)\b|\bunanswerable\b",
    re.IGNORECASE,
)


def declines(answer: str) -> bool:
    """Whether an answer says that the document does not say."""
    return not answer.strip() or _DECLINES.search(answer[:120]) is not None


def strength(ranking: Tensor) -> float:
    """By how many deviations the best block of a ranking `(N,)` stands above their mean; 0 where all are alike."""
    spread = float(ranking.std(correction=0))
    return float(ranking.max() - ranking.mean()) / spread if spread > 0 else 0.0


@dataclass(frozen=True)
class Trust:
    """answered: whether the document seems to answer the question; confidence: how likely the answer is right, in
    [0, 1]."""

    answered: bool
    confidence: float


def trust(answer: Answer, ranking: Tensor) -> Trust:
    """By the probabilities of the answer's tokens and by how far the best block of the ranking `(N,)` stands out: a
    question that the document does not answer has no block of its own."""
    if declines(answer.text):
        return Trust(False, 0.0)
    seen = evidence(answer.likelihood, strength(ranking))
    return Trust(logistic(_ANSWERABLE, seen) >= _LEAST, logistic(_RIGHT, seen))


def evidence(likelihood: float, strength: float) -> tuple[float, ...]:
    """What speaks for an answer, behind a constant: the mean log-likelihood of its tokens, the ranking's strength."""
    return 1.0, math.log(max(likelihood, 1e-9)), strength


def logistic(weights: Sequence[float], seen: Sequence[float]) -> float:
    """A probability by logistic regression."""
    return 1 / (1 + math.exp(-sum(weight * value for weight, value in zip(weights, seen, strict=True))))
