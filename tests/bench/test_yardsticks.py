"""The stock model beside the cache: what it is given, and that it is stock."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from transformers.utils import logging

from actqkv_cli.bench import yardsticks
from actqkv_cli.bench.examples import Example, unanswerable
from actqkv_cli.errors import UsageError
from actqkv_cli.model.prompt import encode_document, encode_question
from actqkv_cli.model.stock import stock_model
from actqkv_cli.model.tokenizer import Tokenizer

TEXT = " ".join(tiny.words(tiny.tokens(400)).split())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny.tokenizer([TEXT], special=["<s>", "</s>"])


def example(**changes: Any) -> Example:
    fields = {
        "id": "1",
        "task": "task",
        "context": "all",
        "question": "t005 t009",
        "answers": ("x",),
        "metric": "qa_f1",
    }
    return Example(**{**fields, "max_tokens": 6, **changes})


def test_gold_is_the_passage_and_reread_the_text_of_what_is_attended(tmp_path: Path, tokenizer: Tokenizer) -> None:
    ids = tiny.tokens(301)
    tiny.ingest(tiny.model(), ids, tmp_path / "document", tiny.reading(positions="clamped"), tiny.HEADS, 64)
    budget = tiny.SINK + 3 * tiny.BLOCK
    settings = [("gold", 0), ("hybrid", budget), ("reread", budget)]
    words = tiny.words(ids).split()
    with tiny.opened(tiny.model(), tmp_path / "document") as session:
        found = yardsticks.texts(session, tokenizer, 0, example(passage="mine"), settings)
    assert set(found) == {("gold", 0), ("reread", budget)}
    assert found["gold", 0] == "mine"
    text = found["reread", budget]
    assert text.split()[: tiny.SINK] == words[: tiny.SINK]
    assert len(text.split()) == budget
    assert all(piece in " ".join(words) for piece in text.split("\n\n"))


@pytest.mark.parametrize("max_tokens", [2, 3, 6, 40])
def test_answers_are_what_the_model_alone_generates(
    tokenizer: Tokenizer, max_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To each text and question, also where several of different lengths go through the model together."""
    model = stock_model(tiny.model())
    stop = tokenizer.eos
    loaded: Any = SimpleNamespace(tokenizer=tokenizer, device=torch.device("cpu"), stop_tokens=frozenset({stop}))
    texts, expected = [TEXT[:100], TEXT[50:75], TEXT[:30]], []
    for text in texts:
        document = encode_document(tokenizer, [(1, 0, text)]).ids.long()
        ids = torch.cat([document, encode_question(tokenizer, "t005 t009").ids])
        before = len(ids)
        with torch.inference_mode():
            while len(ids) < before + max_tokens and int(ids[-1]) != stop:
                ids = torch.cat([ids, model(ids[None]).logits[0, -1].argmax()[None]])
        expected.append(tokenizer.decode(ids[before:].tolist()).strip())
    assert len(set(expected)) == len(texts)
    asked = [(text, example(max_tokens=max_tokens)) for text in texts]
    generate, levels = model.generate, []
    monkeypatch.setattr(model, "generate", lambda *a, **k: levels.append(logging.get_verbosity()) or generate(*a, **k))
    assert yardsticks.stock_answers(model, loaded, asked) == expected
    assert levels == [logging.ERROR]  # its advice is not for users


def test_every_document_is_asked_the_questions_of_another() -> None:
    asked = [example(id=str(n), context=text, passage=f"{text}{n}") for n, text in enumerate(["a", "a", "b", "c"])]
    made = unanswerable(asked)
    assert not any(e.passage for e in made)
    assert [(e.id, e.context, e.answers) for e in made] == [
        ("0", "c", ()),
        ("1", "c", ()),
        ("2", "a", ()),
        ("3", "b", ()),
    ]
    assert all(e.task == "task-unanswerable" and not e.spans for e in made)
    with pytest.raises(UsageError, match="two documents"):
        unanswerable(asked[:2])
