"""The whole tool by the kernels, interpreted on the CPU: the same answers as by torch, or why they cannot run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sandbox import SMALL, Done, Sandbox, finish
from workers import status, with_worker

QUESTION = "Wer?"
ASK = ["ask", QUESTION, "--device", "cpu", "--budget", "640", "--max-tokens", "2"]
KUESTE = ["--doc", "Küste — Café.txt", "--json"]


@pytest.fixture(scope="module")
def interpreting(library: Sandbox) -> Iterator[Sandbox]:
    """The library of three documents, with a worker that can interpret kernels."""
    yield from with_worker(library.with_env(TRITON_INTERPRET="1"))


def said(done: Done) -> dict[str, Any]:
    """An answer and what it rests on, without what differs from one time to the next."""
    assert done.code == 0, done.err
    return {name: done.json[name] for name in ("answer", "finish", "sources", "policy", "budget", "usage")}


def test_a_document_is_read_and_asked(library: Sandbox, tiny: Path, tmp_path: Path) -> None:
    """In processes of their own, in two windows."""
    text = tmp_path / "kranich.txt"
    text.write_text("".join(f"{n}: Der Kranich 🐦 stand im Café an der Küste.\n" for n in range(4)), encoding="utf-8")
    boxes = []
    for backend in ("torch", "triton"):
        (tmp_path / backend).mkdir()
        env = {"ACTQKV_KERNELS": backend, "TRITON_INTERPRET": "1"}
        boxes.append(Sandbox(tmp_path / backend, library.cache, env))
    ingest: list[str | Path] = ["ingest", text, "--model", tiny, *SMALL, "--window", "128", "--json"]
    read = [finish(process) for process in [box.start(*ingest) for box in boxes]]
    assert [done.code for done in read] == [0, 0], read[1].err
    assert [done.json["documents"][0]["tokens"] // 128 for done in read] == [1, 1]
    asked = [finish(process) for process in [box.start(*ASK, "--json") for box in boxes]]
    assert said(asked[0]) == said(asked[1])
    assert asked[0].json["sources"]


@pytest.mark.parametrize("policy", ["hybrid", "actqkv"])
def test_one_worker_answers_by_either(interpreting: Sandbox, policy: str) -> None:
    """As the client's environment says each time, from the same open document; it has blocks to choose from."""
    answers, workers = [], set()
    for backend in ("torch", "triton", "torch"):
        done = interpreting.with_env(ACTQKV_KERNELS=backend, ACTQKV_KEEP_ALIVE="60s").run(
            *ASK, *KUESTE, "--policy", policy
        )
        answers.append(said(done))
        found = status(interpreting)
        workers.add(found and found["pid"])
    for answer in answers:
        del answer["usage"]["bytes_read"]  # blocks that are there are not read again
    assert answers[0] == answers[1] == answers[2]
    blocks = answers[0]["usage"]["blocks"]  # hybrid spends a part of the budget on the rest of their sentences
    assert 0 < blocks <= 2 * (640 - 64) // 32
    assert len(workers) == 1


def told(done: Done) -> tuple[str, str]:
    """The one line that says what is wrong, and the one that says what to do about it."""
    error, hint = done.err.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert done.code == 2
    return error, hint


@pytest.mark.parametrize("command", ["ask", "ingest"])
def test_exit_2_kernels_that_there_are_not(interpreting: Sandbox, tiny: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "new.txt").write_text("Nobody has read this.\n")
    args = ASK if command == "ask" else ["ingest", tmp_path / "new.txt", "--model", tiny, *SMALL]
    home = interpreting.home if command == "ask" else tmp_path / "library"
    error, hint = told(interpreting.with_env(ACTQKV_KERNELS="nonsense", ACTQKV_HOME=str(home)).run(*args))
    assert "'nonsense'" in error
    assert all(name in hint for name in ("ACTQKV_KERNELS", "auto", "torch", "triton"))
    if command == "ingest":
        assert not list(home.glob("[!.]*"))  # nothing was begun


def test_exit_2_kernels_without_a_gpu(interpreting: Sandbox, library: Sandbox) -> None:
    """A worker that interprets kernels makes way: what is interpreted is settled when a kernel is defined."""
    before = status(interpreting)
    socket = {"XDG_RUNTIME_DIR": interpreting.env["XDG_RUNTIME_DIR"], "ACTQKV_KEEP_ALIVE": "60s"}
    error, hint = told(library.with_env(**socket, ACTQKV_KERNELS="triton").run(*ASK))
    assert "triton" in error
    assert "no GPU" in error
    assert "ACTQKV_KERNELS" in hint
    after = status(interpreting)
    assert after is not None
    assert before is None or after["pid"] != before["pid"]
