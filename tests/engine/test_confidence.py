"""Which answers decline, and how far the best block stands out."""

import pytest
import torch

from actqkv_cli.engine.confidence import declines, strength
from actqkv_cli.model.prompt import DECLINED


@pytest.mark.parametrize(
    "answer",
    [
        DECLINED,
        "the document does not say",
        "The document doesn't mention who built it.",
        "Not mentioned in the document.",
        "There is no information about that.",
        "It is not specified who won.",
        "",
    ],
)
def test_answers_that_decline(answer: str) -> None:
    assert declines(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Ada Verren",
        "No.",
        "It was not until 1902 that the tower was finished.",
        "Nobody",
        "The keeper did not allow visitors.",
        "Notts County",
    ],
)
def test_answers_that_answer(answer: str) -> None:
    assert not declines(answer)


def test_strength_is_the_best_blocks_deviation() -> None:
    ranking = torch.tensor([0.0, 0.0, 0.0, 4.0])
    assert strength(ranking) == pytest.approx((4 - 1) / 3**0.5)
    assert strength(10 * ranking + 3) == pytest.approx(strength(ranking))
    assert strength(torch.ones(5)) == 0
