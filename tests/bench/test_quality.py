"""What the bench counts, against cases worked by hand."""

import json
import math
from pathlib import Path

import pytest
import torch

from actqkv_cli.bench.quality import Outcome, _nll, read_questions, summary
from actqkv_cli.errors import UsageError


def test_counts_and_means() -> None:
    outcomes = [Outcome(True, True, True, 1.0), Outcome(False, True, False, 3.0), Outcome(False, False, False, 2.0)]
    row = summary("heads", 960, outcomes)
    assert (row["questions"], row["page_first"], row["page_in_three"], row["answered"]) == (3, 1, 2, 1)
    assert row["nll"] == 2.0
    assert row["nll_interval"] == pytest.approx(1.96 / math.sqrt(3), abs=1e-3)  # the sample's deviation is 1


def test_a_lexical_row_has_no_answers() -> None:
    assert "nll" not in summary("bm25", None, [Outcome(True, True)])


def test_likelihood_is_that_of_the_expected_tokens() -> None:
    class Steps:
        """Token t is followed by t + 1 with probability 3/4, by the other of four with 1/12 each."""

        def __init__(self) -> None:
            self.logits = self._after(0)

        def _after(self, token: int) -> torch.Tensor:
            p = torch.full((4,), 1 / 12)
            p[(token + 1) % 4] = 3 / 4
            return p.log()

        def step(self, token: int) -> torch.Tensor:
            self.logits = self._after(token)
            return self.logits

    assert _nll(Steps(), [1, 2, 3]) == pytest.approx(-math.log(3 / 4))  # type: ignore[arg-type]
    assert _nll(Steps(), [1, 1]) == pytest.approx(-(math.log(3 / 4) + math.log(1 / 12)) / 2)  # type: ignore[arg-type]


def test_the_sample_questions_are_read() -> None:
    questions = read_questions(Path(__file__).parents[2] / "sample_docs" / "questions.jsonl")
    assert len(questions) >= 40
    assert all(question.answers and question.pages for question in questions)


@pytest.mark.parametrize(
    "line", ["{", "[]", json.dumps({"document": "a", "question": "b", "answers": [], "pages": [1]})]
)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    good = json.dumps({"document": "a", "question": "b", "answers": ["c"], "pages": [1]})
    (tmp_path / "q.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(UsageError, match="line 2"):
        read_questions(tmp_path / "q.jsonl")
