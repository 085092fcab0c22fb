"""Which answers decline, and how far the best block stands out."""

import pytest
import torch

from actqkv_cli.engine.answer import Answer
from actqkv_cli.engine.confidence import Trust, declines, strength, trust


@pytest.mark.parametrize(
    "answer",
    [
        "The document does not say.",
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


def test_trust_grows_with_likelihood_and_with_strength() -> None:
    plain, peak = torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([0.0] * 99 + [9.0])
    sure, unsure = (Answer("Ada Verren", 3, "stop", p) for p in (0.99, 0.2))
    found = [trust(unsure, plain), trust(sure, plain), trust(sure, peak)]
    assert 0 < found[0].confidence < found[1].confidence < found[2].confidence < 1
    assert [one.answered for one in found] == [False, False, True]


@pytest.mark.parametrize("text", ["", "The document does not say."])
def test_an_answer_that_declines_is_none(text: str) -> None:
    assert trust(Answer(text, 6, "stop", 0.99), torch.tensor([0.0] * 99 + [9.0])) == Trust(False, 0.0)
