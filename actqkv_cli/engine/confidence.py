"""How far an answer can be trusted: whether it declines, and how likely it is to be right."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from actqkv_cli.engine.answer import Answer
from actqkv_cli.retrieval.policy import strength

# Logistic regressions, fitted by `python -m actqkv_cli.bench.trust` on answers of the 1.5B model to natural questions
# over 16K tokens (136), and to questions of another document (123); the weights are those of `evidence`. On questions
# that they were not fitted to (206 and 125) they declined 2 % and 66 %.
_ANSWERABLE = -8.34, 0.56, 0.58, 1.15, 4.70
_RIGHT = -2.86, 3.95, 0.71, 0.36, 2.43
_THRESHOLD = 0.15  # one in twenty of the questions that the document answers falls below it, by choice
_USUAL_COVERAGE = 0.50  # of a question that the document answers

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


@dataclass(frozen=True)
class Trust:
    """answered: whether the document seems to answer the question; confidence: how likely the answer is right, in
    [0, 1]."""

    answered: bool
    confidence: float


def trust(answer: Answer, ranking: Tensor, coverage: float | None) -> Trust:
    """By the probabilities of the answer's tokens, and by how far the best block of the ranking `(N,)` stands out and
    how much of the question it says: a question that the document does not answer has no block of its own."""
    return weighed(answer.text, evidence(answer.likelihood, answer.min_probability, strength(ranking), coverage))


def weighed(answer: str, seen: Sequence[float]) -> Trust:
    """As `trust`, of an answer's text and its `evidence`."""
    if declines(answer):
        return Trust(False, 0.0)
    return Trust(logistic(_ANSWERABLE, seen) >= _THRESHOLD, logistic(_RIGHT, seen))


def evidence(likelihood: float, min_probability: float, strength: float, coverage: float | None) -> tuple[float, ...]:
    """What speaks for an answer, behind a constant: the mean log-likelihood of its tokens and the least, the ranking's
    strength, and the coverage of the question, the usual one where it is not known."""
    usual = _USUAL_COVERAGE if coverage is None else coverage
    return 1.0, math.log(max(likelihood, 1e-9)), math.log(max(min_probability, 1e-9)), strength, usual


def logistic(weights: Sequence[float], seen: Sequence[float]) -> float:
    """A probability by logistic regression."""
    return 1 / (1 + math.exp(-sum(weight * value for weight, value in zip(weights, seen, strict=True))))
