"""What the bench measures, against cases worked by hand and invariants on a tiny model."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from actqkv_cli.bench import results
from actqkv_cli.bench.examples import BETWEEN, Example, joined
from actqkv_cli.bench.formats import read_examples
from actqkv_cli.bench.paired import Measured
from actqkv_cli.bench.quality import document_of, gold_blocks, likelihood, measure_answers, measure_fidelity
from actqkv_cli.errors import UsageError
from actqkv_cli.retrieval.names import policy_names


def log(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows).log()


def test_likelihood_by_hand() -> None:
    """Two gold tokens with 3/4 and 1/8 of the probability; the reference agrees on the first argmax only."""
    found = likelihood(log([0.75, 0.25], [0.875, 0.125]), torch.tensor([0, 1]), log([0.5, 0.5], [0.25, 0.75]))
    assert found["nll"] == pytest.approx(-(math.log(0.75) + math.log(0.125)) / 2)
    assert found["agreement"] == 0.5
    first = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    second = 0.25 * math.log(0.25 / 0.875) + 0.75 * math.log(0.75 / 0.125)
    assert found["divergence"] == pytest.approx((first + second) / 2)
    assert set(likelihood(log([0.5, 0.5]), torch.tensor([0]), None)) == {"nll"}


def example(**changes: Any) -> Example:
    plain = Example("1", "task", "context", "Who?", ("x",), "best_subspan_em", 8)
    return replace(plain, **changes)


class TestJoined:
    def test_spans_hold_the_same_text(self) -> None:
        texts = ["alpha beta", "gamma", "delta epsilon zeta"]
        made = joined(
            [example(id=str(i), context=text, spans=((0, 5),)) for i, text in enumerate(texts)], 100, lambda t: len(t)
        )
        assert {e.context for e in made} == {BETWEEN.join(texts)}
        assert [e.context[slice(*e.spans[0])] for e in made] == ["alpha", "gamma", "delta"]

    def test_documents_stay_within_their_length_and_keep_the_order(self) -> None:
        texts = [f"{i} " * 10 for i in range(20)]
        made = joined([example(id=str(i), context=t) for i, t in enumerate(texts)], 70, lambda t: len(t.split()))
        assert [e.id for e in made] == [str(i) for i in range(20)]
        assert [len(e.context.split()) for e in made] == [70] * 14 + [60] * 6
        assert all(text in e.context for text, e in zip(texts, made, strict=True))

    def test_equal_contexts_stand_once_and_long_ones_alone(self) -> None:
        made = joined([example(context="a b"), example(context="a b"), example(context="c " * 50)], 9, lambda t: len(t))
        assert [e.context for e in made] == ["a b", "a b", "c " * 50]


class TestResults:
    ROW = Measured("1", "task", "document", 9, "heads", 960, {"nll": 1.5}, 0.25)
    BOTH = (ROW, replace(ROW, policy="full"))  # one question under two settings
    WANTED = MappingProxyType({("task", document, n): 2 for document in ("document", "other") for n in ("1", "2")})

    def test_a_run_goes_on_where_it_was(self, tmp_path: Path) -> None:
        assert results.resume(tmp_path / "run", {"a": [1, 2]}, self.WANTED) == []
        results.append(tmp_path / "run", self.BOTH)
        other = [replace(row, document="other") for row in self.BOTH]  # the same question of another document
        results.append(tmp_path / "run", other)
        assert results.resume(tmp_path / "run", {"a": [1, 2]}, self.WANTED) == [*self.BOTH, *other]

    @pytest.mark.parametrize("cut", [1, 10, 130, 200])
    def test_a_question_cut_by_a_kill_is_measured_again(self, cut: int, tmp_path: Path) -> None:
        """In the middle of a line, and between the lines of a question."""
        second = [replace(row, example="2") for row in self.BOTH]
        results.resume(tmp_path, {}, self.WANTED)
        results.append(tmp_path, self.BOTH)
        results.append(tmp_path, second)
        path = tmp_path / results.ROWS
        size = len(path.read_bytes()) // 4  # of a row, about
        assert 2 * size > 200
        path.write_bytes(path.read_bytes()[:-cut])
        assert results.resume(tmp_path, {}, self.WANTED) == list(self.BOTH)
        results.append(tmp_path, second)
        assert results.resume(tmp_path, {}, self.WANTED) == [*self.BOTH, *second]

    def test_another_run_is_refused(self, tmp_path: Path) -> None:
        results.resume(tmp_path, {"model": "a"}, {})
        with pytest.raises(UsageError, match="model differs"):
            results.resume(tmp_path, {"model": "b"}, {})


def test_a_documents_characters_stay_as_they_are() -> None:
    text = "  two\n\n\n words\t \n"
    assert document_of(text).text == text


def test_gold_blocks_are_those_of_the_spans(tmp_path: Path) -> None:
    """A token is a word of 5 characters, a block has 8 of them."""
    tiny.ingest(tiny.model(), tiny.tokens(100), tmp_path / "document", tiny.reading())
    with tiny.opened(tiny.model(), tmp_path / "document") as session:
        words = [(tiny.WORD * a, tiny.WORD * b) for a, b in ((0, 1), (7, 9), (16, 24), (99, 100), (8, 33))]
        spans = (*words, (tiny.WORD * 8 - 1, tiny.WORD * 8), (tiny.WORD * 8, tiny.WORD * 8 + 1))
        assert gold_blocks(session.context, 0, example(spans=spans)) == [{0}, {0, 1}, {2}, {12}, {1, 2, 3, 4}, {0}, {1}]


def test_every_policy_is_measured_beside_full_attention(tmp_path: Path) -> None:
    """With a budget that covers the document all policies are full attention."""
    model = tiny.model()
    words = tiny.tokenizer(["who built the lighthouse and when"] * 3, special=["<s>", "</s>"])
    loaded: Any = SimpleNamespace(model=model, tokenizer=words, stop_tokens=frozenset({words.eos}))
    tiny.ingest(model, tiny.tokens(301), tmp_path / "document", tiny.reading(baselines=True), tiny.HEADS)
    asked = example(question="who built it", answers=("the lighthouse",), spans=((50, 60),), pages=(1,))
    settings = [("full", 0), *((policy, 1000) for policy in policy_names() if policy != "full")]
    with tiny.opened(model, tmp_path / "document") as session:
        rows = list(measure_fidelity(loaded, session, 0, asked, settings))
        poor = list(measure_fidelity(loaded, session, 0, asked, [("full", 0), ("streaming", 40)]))
    assert [(row.policy, row.budget) for row in rows] == settings
    for row in rows:
        assert row.values["nll"] == pytest.approx(rows[0].values["nll"], abs=1e-4)
        assert row.values["divergence"] == pytest.approx(0, abs=1e-5)
        assert row.values["agreement"] == 1
        assert row.values["recall1"] <= row.values["recall3"] <= row.values["recall5"]
        assert row.values["attended"] == 301
        json.dumps(row.values)
    resident = {row.policy: row.values["bytes"] for row in rows}
    states = 4 * 4 * 38 * 2 * 16  # a key for each layer, block and kv head
    assert [resident[name] for name in ("full", "streaming", "lexical")] == [0, 0, 0]
    assert (resident["actqkv"], resident["acre"]) == (states, 2 * states)
    assert resident["hybrid"] == 4 * len({(head.layer, head.head // 2) for head in tiny.HEADS}) * 301 * 16
    assert poor[1].values["divergence"] > 1e-3
    assert poor[1].values["attended"] < 50
    assert {"page1", "page3"} <= poor[1].values.keys()


def test_questions_that_are_answered_together_do_not_see_one_another(tmp_path: Path) -> None:
    model = tiny.model()
    words = tiny.tokenizer(["who built the lighthouse and when was it"] * 3, special=["<s>", "</s>"])
    loaded: Any = SimpleNamespace(model=model, tokenizer=words, stop_tokens=frozenset({words.eos}))
    tiny.ingest(model, tiny.tokens(301), tmp_path / "document", tiny.reading(), tiny.HEADS)
    asked = [
        (0, example(id=text, question=text, answers=("it",), spans=((50, 60),)))
        for text in ("who built it", "when", "who was the lighthouse and when was it built")
    ]
    settings = [("hybrid", 48), ("heads", 64), ("full", 0), ("actqkv", 80)]
    with tiny.opened(model, tmp_path / "document") as session:
        together = list(measure_answers(loaded, session, asked, settings))
        alone = [
            row for one in asked for setting in settings for row in measure_answers(loaded, session, [one], [setting])
        ]
    assert [(row.example, row.policy) for row in together] == [(row.example, row.policy) for row in alone]
    for row, single in zip(together, alone, strict=True):
        assert {"score", "declined", "brier", "recall1", "attended"} <= row.values.keys()
        assert row.values == pytest.approx(single.values, abs=1e-4)


def test_the_sample_questions_are_read() -> None:
    questions = read_examples(Path(__file__).parents[2] / "sample_docs" / "questions.jsonl")
    assert len(questions) >= 40
    assert all(question.answers and question.pages and question.document for question in questions)
