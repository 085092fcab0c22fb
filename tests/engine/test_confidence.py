"""Which answers decline, and how far the best block stands out."""

import pytest
import torch

from actqkv_cli.engine.answer import Answer
from actqkv_cli.engine.confidence import Trust, declines, trust
from actqkv_cli.retrieval.policy import strength


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


def test_trust_grows_with_likelihood_with_strength_and_with_coverage() -> None:
    plain, peak = torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([0.0] * 99 + [9.0])
    sure, unsure = (Answer("Ada Verren", 3, "stop", p, p) for p in (0.99, 0.2))
    found = [trust(unsure, plain, 0.2), trust(sure, plain, 0.2), trust(sure, peak, 0.2), trust(sure, peak, 0.9)]
    assert [one.confidence for one in found] == sorted({one.confidence for one in found})
    assert found[0].confidence > 0
    assert found[-1].confidence < 1
    assert [found[0].answered, found[-1].answered] == [False, True]


def test_a_question_in_another_language_is_not_held_against_its_answer() -> None:
    """None of its words is in the text, whatever the text answers."""
    peak, sure = torch.tensor([0.0] * 99 + [9.0]), Answer("Ada Verren", 3, "stop", 0.99, 0.98)
    assert trust(sure, peak, None).answered


@pytest.mark.parametrize("text", ["", "The document does not say."])
def test_an_answer_that_declines_is_none(text: str) -> None:
    assert trust(Answer(text, 6, "stop", 0.99), torch.tensor([0.0] * 99 + [9.0]), 1.0) == Trust(False, 0.0)
