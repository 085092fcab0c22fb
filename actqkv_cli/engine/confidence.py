"""How far an answer can be trusted: whether it declines, and how likely it is to be right."""

import math
import re

from torch import Tensor

from actqkv_cli.engine.answer import Answer

LEAST = 0.5  # an answer of less confidence counts as none
# Fitted by logistic regression on the default model's answers to natural questions, of its document and of another.
_BIAS, _LIKELIHOOD, _STRENGTH = -2.0, 2.0, 0.5
_TELLS = "say|state|mention|specif|provide|contain|answer|include|give|tell"
_DECLINES = re.compile(
    rf"\b(?:document|text|passage|context)\b.{{0,20}}(?:not|n't|n’t|no)\b.{{0,20}}(?:{_TELLS}|information)"
    rf"|\bnot (?:explicitly |directly )?(?:{_TELLS})|\bnot in the (?:document|text)"
    r"|\bno (?:information|answer|mention)\b|\bunanswerable\b",
    re.IGNORECASE,
)


def declines(answer: str) -> bool:
    """Whether an answer says that the document does not say, in the words of the prompt or in others."""
    return not answer.strip() or _DECLINES.search(answer[:120]) is not None


def strength(ranking: Tensor) -> float:
    """By how many deviations the best block of a ranking `(N,)` stands above their mean; 0 where all are alike."""
    spread = float(ranking.std(correction=0))
    return float(ranking.max() - ranking.mean()) / spread if spread > 0 else 0.0


def confidence(answer: Answer, ranking: Tensor) -> float:
    """How likely an answer is right, in [0, 1]: by its tokens' probabilities, and by how far the best block of the
    ranking `(N,)` stands out, for a question that the document does not answer has no block of its own."""
    if declines(answer.text):
        return 0.0
    logit = _BIAS + _LIKELIHOOD * math.log(max(answer.likelihood, 1e-9)) + _STRENGTH * strength(ranking)
    return 1 / (1 + math.exp(-logit))
