"""What a client is told when an answer fails after it has begun, or in a way that no one foresaw."""

import asyncio
import json
import queue
import threading
from pathlib import Path
from typing import Any

import pytest

from actqkv_cli.config import Settings
from actqkv_cli.errors import ActqkvError, StoreDamaged
from actqkv_cli.failures import foreseen
from actqkv_cli.serve.app import make_app
from actqkv_cli.serve.work import Event, Jobs, Started

RECORD = {
    "answer": "one", "finish": "stop", "answered": True, "confidence": 0.9, "supported": None,
    "sources": [], "documents": ["a-1"], "policy": "heads",
    "budget": 960, "seed": 0, "version": "0", "usage": {"document_tokens": 5, "question_tokens": 3, "answer_tokens": 1},
}  # fmt: skip


def reply(home: Path, events: list[Event | Exception], stream: bool) -> tuple[int, str]:
    """Status and body of a request whose answer goes as said."""
    jobs: Jobs = queue.SimpleQueue()
    sent: list[Any] = []
    messages = [{"role": "user", "content": "Who?"}]
    body = json.dumps({"model": "latest", "messages": messages, "stream": stream}).encode()

    def work() -> None:
        job = jobs.get()
        assert job is not None
        for event in events:
            job.send(event)

    async def call() -> None:
        left = [{"type": "http.request", "body": body}]
        app = make_app(jobs, Settings(home=home), ["testserver"])

        async def receive() -> Any:
            return left.pop() if left else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"testserver"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
        await app({**scope, "query_string": b"", "asgi": {"version": "3.0", "spec_version": "2.3"}}, receive, send)

    thread = threading.Thread(target=work)
    thread.start()
    asyncio.run(call())
    thread.join()
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent).decode()


def events_of(text: str) -> list[Any]:
    return [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line and "[DONE]" not in line]


def test_a_failure_in_mid_stream_is_its_last_event(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, text = reply(tmp_path, [Started(["a-1"]), "one", StoreDamaged("block 7 is damaged", "ingest again")], True)
    assert status == 200
    assert "[DONE]" not in text
    found = events_of(text)
    assert found[1]["choices"][0]["delta"] == {"content": "one"}
    assert found[-1]["error"]["code"] == "store_damaged"
    assert "block 7" in found[-1]["error"]["message"]
    assert capfd.readouterr().err == "error: block 7 is damaged\n"


def test_without_a_stream_a_failure_is_all_there_is(tmp_path: Path) -> None:
    status, text = reply(tmp_path, [Started(["a-1"]), "one", StoreDamaged("block 7 is damaged")], False)
    assert (status, json.loads(text)["error"]["message"]) == (500, "block 7 is damaged")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("can't allocate memory: you tried to allocate 5 bytes"), "out of memory"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "no space left on the disk"),
        (ZeroDivisionError("an oversight\nsecond line"), "an oversight"),
        (ActqkvError("the document is being ingested by another process"), "ingested"),
    ],
)
def test_what_can_happen_anywhere(tmp_path: Path, error: Exception, told: str) -> None:
    status, text = reply(tmp_path, [foreseen(error)], stream=True)
    assert status == 500
    found = json.loads(text)["error"]
    assert told in found["message"]
    assert found["type"] == "server_error"
    assert "\n" not in found["message"]


@pytest.mark.parametrize("finish", ["stop", "repetition"])
@pytest.mark.parametrize("stream", [True, False])
def test_what_ends_well(tmp_path: Path, stream: bool, finish: str) -> None:
    status, text = reply(tmp_path, [Started(["a-1"]), "one", {**RECORD, "finish": finish}], stream)
    assert status == 200
    whole = events_of(text)[-1] if stream else json.loads(text)
    assert (whole["model"], whole["sources"], whole["choices"][0]["finish_reason"]) == ("a-1", [], "stop")
    assert whole["actqkv"]["finish"] == finish
    assert text.endswith("data: [DONE]\n\n") == stream
