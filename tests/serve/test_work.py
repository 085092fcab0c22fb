"""Texts that end an answer, and what becomes of those who wait."""

import asyncio
import queue
import random
from pathlib import Path
from typing import Any

import pytest

from actqkv_cli.config import Settings
from actqkv_cli.errors import ActqkvError
from actqkv_cli.runtime import Runtime
from actqkv_cli.serve import work
from actqkv_cli.serve.request import ChatRequest, parse
from actqkv_cli.serve.work import Gone, Job, StopFound, stop_at

BODY = b'{"model": "latest", "messages": [{"role": "user", "content": "Who?"}]}'


def written(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    text: list[str] = []
    write = stop_at(stops, text.append)
    try:
        for piece in pieces:
            write(piece)
    except StopFound:
        return "".join(text), True
    return "".join(text), False


def test_text_ends_before_the_first_stop_however_it_comes() -> None:
    draw = random.Random(0)
    for _ in range(2000):
        text = "".join(draw.choices("ab", k=draw.randrange(12)))
        stops = ["".join(draw.choices("ab", k=draw.randint(1, 4))) for _ in range(draw.randrange(3))]
        cuts = sorted(draw.choices(range(len(text) + 1), k=draw.randrange(4)))
        pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        # The first that is complete ends the answer; of several that are then, the one that begins first.
        ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
        out, stopped = written(stops, pieces)
        assert stopped == bool(ends)
        if stopped:
            assert any(out == text[:begin] for _, begin in ends)
            assert not any(stop in out for stop in stops)
        else:
            # What is held back is the beginning of a stop, and no more.
            assert text.startswith(out)
            assert any(stop.startswith(text[len(out) :]) for stop in [*stops, ""])


@pytest.mark.parametrize(
    ("stops", "pieces", "expected"),
    [
        (["###"], ["one #", "# two #", "##three"], ("one ## two ", True)),
        (["\n"], ["one", "\ntwo"], ("one", True)),
        (["\nQ:"], ["one\n", "Q", "uite"], ("one\nQuite", False)),
        (["aab"], ["aa", "a", "b"], ("a", True)),
        ([], ["one ", "two"], ("one two", False)),
    ],
)
def test_stops_by_hand(stops: list[str], pieces: list[str], expected: tuple[str, bool]) -> None:
    assert written(stops, pieces) == expected


def test_a_job_that_nobody_waits_for_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[ChatRequest] = []
    monkeypatch.setattr(work, "_answer", lambda job, settings, runtime: begun.append(job.request) or {})

    async def both() -> Any:
        jobs: work.Jobs = queue.SimpleQueue()
        gone, waiting = Job(parse(BODY)), Job(parse(BODY))
        gone.stop()
        for job in (gone, waiting, None):
            jobs.put(job)
        work.work(jobs, Settings(), Runtime())
        with pytest.raises(Gone):
            await gone.next()
        return await waiting.next()

    assert asyncio.run(both()) == {}
    assert len(begun) == 1


def test_who_waits_is_told_when_the_work_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(job: Job, settings: Settings, runtime: Runtime) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(work, "_answer", interrupt)

    async def wait() -> None:
        jobs: work.Jobs = queue.SimpleQueue()
        waiting = [Job(parse(BODY)) for _ in range(3)]
        for job in waiting:
            jobs.put(job)
        with pytest.raises(KeyboardInterrupt):
            work.work(jobs, Settings(), Runtime())
        for job in waiting:
            with pytest.raises(ActqkvError, match="stopped"):
                await asyncio.wait_for(job.next(), 1)

    asyncio.run(wait())


def test_the_server_needs_no_command() -> None:
    for path in Path(work.__file__).parent.glob("*.py"):
        assert "actqkv_cli.commands" not in path.read_text(), path
