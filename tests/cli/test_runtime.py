"""One runtime for several commands, as the worker has it."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sandbox import Sandbox

from actqkv_cli.commands import ask, chat
from actqkv_cli.config import Settings
from actqkv_cli.invocation import Invocation
from actqkv_cli.model import choose
from actqkv_cli.retrieval.lexical import lexical_index
from actqkv_cli.retrieval.whole import sentence_tokens
from actqkv_cli.runtime import OtherWorkerNeeded, Runtime
from actqkv_cli.store.reader import DocumentReader

QUESTIONS = ["Who built the lighthouse?", "And when?"]


@pytest.fixture
def settings(library: Sandbox) -> Settings:
    return Settings(home=library.home, cache=library.cache, device="cpu", offline=True, max_tokens=6)


def carried_out_by(runtime: Runtime) -> Invocation:
    """Where nobody delegates or stops anything."""
    return Invocation([], 0.0, lambda keep_alive: None, lambda: contextlib.nullcontext(runtime), lambda: None)


def asked(doc: str, settings: Settings, runtime: Runtime) -> None:
    ask.run("Who?", None, ask.Options([doc], False, "text", False, True), settings, carried_out_by(runtime))


def test_a_live_chat_keeps_its_document_whatever_else_is_asked(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(choose, "free_memory", lambda device: 0)

    def talked(runtime: Runtime, between: list[str]) -> list[str]:
        said = []
        talk = chat.run(["handbook"], False, settings, carried_out_by(runtime))
        assert next(talk) == chat.PROMPT
        for question in QUESTIONS:
            talk.send(question)
            said.append(capsys.readouterr().out)
            for doc in between:
                asked(doc, settings, runtime)
                kept = runtime.status()["documents"]
                assert [name.startswith("handbook") for name in kept] == [True, False]
            capsys.readouterr()
        with pytest.raises(StopIteration):
            talk.send(None)
        return said

    with Runtime() as runtime:
        alone = talked(runtime, [])
    with Runtime() as runtime:
        assert talked(runtime, ["log", "Küste"]) == alone
        asked("log", settings, runtime)
        assert [name.startswith("log") for name in runtime.status()["documents"]] == [True]
    assert runtime.status()["documents"] == []
    open_now = [descriptor.resolve() for descriptor in Path("/proc/self/fd").glob("*")]
    assert not any(settings.home in path.parents and path.suffix == ".safetensors" for path in open_now)


def test_a_runtime_is_for_one_library(settings: Settings, library: Sandbox, tmp_path: Path) -> None:
    other = settings.model_copy(update={"home": library.copy(tmp_path).home})
    with Runtime() as runtime:
        asked("log", settings, runtime)
        with pytest.raises(OtherWorkerNeeded, match="is open here"):
            asked("log", other, runtime)
    with Runtime() as runtime:
        asked("log", other, runtime)


def test_what_is_prepared_is_found_by_the_next_question(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counted(function: Callable[[DocumentReader], Any]) -> Callable[[DocumentReader], Any]:
        return lambda reader: made.append(function.__name__) or function(reader)

    monkeypatch.setattr("actqkv_cli.engine.document.lexical_index", counted(lexical_index))
    monkeypatch.setattr("actqkv_cli.engine.document.sentence_tokens", counted(sentence_tokens))
    read = DocumentReader.tensors
    monkeypatch.setattr(DocumentReader, "tensors", lambda self, names: made.extend(names) or read(self, names))
    with Runtime() as runtime:
        ask.prepare("log", settings, runtime)
        prepared = made.copy()
        assert {"head_keys", "lexical_index", "sentence_tokens"} <= {*prepared}
        asked("log", settings, runtime)
        assert made == prepared
