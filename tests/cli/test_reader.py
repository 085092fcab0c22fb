"""The process that reads documents for a caller, and then is the worker."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sandbox import SAMPLES, SMALL, Done, Sandbox, finish
from workers import alive, endpoint, status, until, with_worker

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="there is no worker without Unix sockets")

NEW = "Der Leuchtturm von Carrow steht auf einem Felsen. Sein Wärter heißt Ansgar.\n" * 40


@pytest.fixture
def reader(library: Sandbox, tmp_path: Path) -> Iterator[Sandbox]:
    """A library to ingest into, whose worker does not run yet."""
    (tmp_path / "new.txt").write_text(NEW, encoding="utf-8")
    yield from with_worker(library.copy(tmp_path))


def ingest(box: Sandbox, tiny: Path, *more: str | Path) -> str:
    """Read the new document, and be told its id."""
    done = box.run("ingest", *more or ["new.txt"], "--model", tiny, *SMALL, "--json")
    assert (done.code, done.json["failed"]) == (0, [])
    found: str = done.json["documents"][0]["id"]
    return found


def ready(box: Sandbox, document: str) -> dict[str, Any]:
    """What the worker says when it holds the document and is idle."""
    told = until(lambda: (found := status(box)) and document in found["documents"] and not found["busy"] and found, 60)
    assert isinstance(told, dict)
    return told


def reading(process: "subprocess.Popen[str]") -> int:
    """Who reads for it."""
    (child,) = psutil.Process(process.pid).children()
    return child.pid


def test_the_process_that_read_is_the_worker_and_its_first_question_finds_the_model(
    reader: Sandbox, tiny: Path
) -> None:
    caller = reader.start("ingest", "new.txt", "--model", tiny, *SMALL, "--quiet")
    until(lambda: psutil.Process(caller.pid).children(), 30)
    worker = psutil.Process(reading(caller))
    assert finish(caller) == Done(0, "", "")
    told = ready(reader, reader.folder("new").name)
    assert (told["pid"], told["model"], told["home"]) == (worker.pid, str(tiny), str(reader.home))
    assert told["served"] == 0
    assert 50 < told["remaining_seconds"] <= 60
    assert worker.cwd() == "/"
    assert os.getsid(worker.pid) == worker.pid  # no terminal's hang-up reaches it
    assert {Path(file.path).suffix for file in worker.open_files()} <= {".log", ".lock", ".safetensors"}
    # No flag that was given to ingest need be given again.
    first = reader.run("ask", "Wie heißt der Wärter?", "--max-tokens", "4", "--json")
    assert (first.code, first.json["sources"][0]["document"]) == (0, "new.txt")
    assert first.json["timings"]["import"] + first.json["timings"]["load"] < 0.5  # seconds that were spent already
    assert status(reader)["pid"] == worker.pid  # type: ignore[index]
    assert endpoint(reader).with_suffix(".log").read_text() == ""


def test_a_worker_that_is_there_stays_and_makes_the_document_ready(reader: Sandbox, tiny: Path) -> None:
    ingest(reader, tiny)
    told = status(reader)
    assert told is not None
    (reader.root / "more.txt").write_text(NEW.upper(), encoding="utf-8")
    again = ready(reader, ingest(reader, tiny, "more.txt"))
    assert (again["pid"], again["served"]) == (told["pid"], 1)


def test_a_document_that_was_known_is_made_ready_all_the_same(library: Sandbox, reader: Sandbox, tiny: Path) -> None:
    known = ingest(reader, tiny, library.root / "Küste — Café.txt")
    asked = reader.run("ask", "Wie heißt der Wärter?", "--doc", known, "--max-tokens", "4", "--json")
    assert (asked.code, asked.err) == (0, "")
    assert asked.json["timings"]["load"] < 0.5
    assert ready(reader, known)["documents"] == [known]
    assert endpoint(reader).with_suffix(".log").read_text() == ""  # no worker made way for another


@pytest.mark.parametrize("how", ["environment", "flag"])
def test_keep_alive_0_makes_nothing_ready(reader: Sandbox, tiny: Path, how: str) -> None:
    if how == "flag":
        ingest(reader, tiny, "new.txt", "--keep-alive", "0")
    else:
        ingest(reader.with_env(ACTQKV_KEEP_ALIVE="0"), tiny)
    time.sleep(2)
    assert not endpoint(reader).parent.exists()


def test_ingest_succeeds_where_nothing_can_be_made_ready(reader: Sandbox, tiny: Path) -> None:
    endpoint(reader).parent.write_text("")  # no folder for a socket
    done = reader.run("ingest", "new.txt", "--model", tiny, *SMALL, "--quiet")
    assert done == Done(0, "", "")


# A long document, so that something can happen meanwhile.


@pytest.fixture
def long(reader: Sandbox) -> Sandbox:
    text = (SAMPLES / "harbour-handbook.md").read_text()
    (reader.root / "long.txt").write_text(text * 2)
    return reader


def begin(box: Sandbox, tiny: Path, *more: str, **options: Any) -> "subprocess.Popen[str]":
    """A caller whose long document has begun to be read."""
    process = box.start("ingest", "long.txt", "--model", tiny, *SMALL, "--quiet", *more, **options)
    until(lambda: list(box.home.glob("long*/kv-00001.safetensors")), 60)
    return process


def goes_on(box: Sandbox, tiny: Path) -> None:
    done = box.run("ingest", "long.txt", "--model", tiny, *SMALL, "--json")
    assert done.code == 0
    assert done.json["documents"][0]["resumed_at"] >= 4096


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_caller_that_is_killed_takes_the_reader_with_it(long: Sandbox, tiny: Path, how: signal.Signals) -> None:
    caller = begin(long, tiny)
    child = reading(caller)
    caller.send_signal(how)
    done = finish(caller)
    assert (done.code, done.out, done.err) == (-how, "", "")
    until(lambda: not alive(child), 30)
    assert status(long) is None
    goes_on(long, tiny)


def press(caller: "subprocess.Popen[str]", to: str) -> None:
    if to == "the caller":
        caller.send_signal(signal.SIGINT)
    else:
        os.killpg(caller.pid, signal.SIGINT)


@pytest.mark.parametrize("to", ["the caller", "both, as a terminal does"])
@pytest.mark.parametrize("after", [0.1, 0.3, 0.5])
def test_ctrl_c_at_the_start(long: Sandbox, tiny: Path, to: str, after: float) -> None:
    caller = long.start("ingest", "long.txt", "--model", tiny, *SMALL, "--quiet", start_new_session=True)
    until(lambda: psutil.Process(caller.pid).children(), 30)  # before that it is Python's own business
    time.sleep(after)
    press(caller, to)
    done = finish(caller)
    assert (done.code, done.out) == (130, "")
    assert done.err.count("interrupted") == 1
    assert status(long) is None


@pytest.mark.parametrize("to", ["the caller", "both, as a terminal does"])
def test_ctrl_c_stops_the_reading(long: Sandbox, tiny: Path, to: str) -> None:
    caller = begin(long, tiny, start_new_session=True)
    child = reading(caller)
    press(caller, to)
    done = finish(caller)
    assert (done.code, done.out) == (130, "")
    assert done.err.count("interrupted") == 1
    assert not alive(child)
    goes_on(long, tiny)


def test_an_ignored_ctrl_c_stays_ignored(reader: Sandbox, tiny: Path) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup and a script's & do

    caller = reader.start("ingest", "new.txt", "--model", tiny, *SMALL, "--quiet", preexec_fn=ignore)
    until(lambda: psutil.Process(caller.pid).children(), 30)
    caller.send_signal(signal.SIGINT)
    assert finish(caller) == Done(0, "", "")


def test_a_reader_that_is_killed_is_told_of(long: Sandbox, tiny: Path) -> None:
    caller = begin(long, tiny, "--json")
    os.kill(reading(caller), signal.SIGKILL)
    done = finish(caller)
    assert done.code == 1
    assert "ended by SIGKILL, perhaps because memory ran out\nhint: the same command goes on" in done.err
    assert "SIGKILL" in done.json["error"]["message"]
    goes_on(long, tiny)


def test_without_a_stderr_there_is_a_worker_all_the_same(reader: Sandbox, tiny: Path) -> None:
    done = reader.run("ingest", "new.txt", "--model", tiny, *SMALL, "--json", preexec_fn=lambda: os.close(2))
    assert done.code == 0
    ready(reader, done.json["documents"][0]["id"])


def test_no_log_no_worker(reader: Sandbox, tiny: Path) -> None:
    endpoint(reader).with_suffix(".log").mkdir(parents=True)
    endpoint(reader).parent.chmod(0o700)
    done = reader.run("ingest", "new.txt", "--model", tiny, *SMALL, "--quiet")
    assert done == Done(0, "", "")
    assert status(reader) is None


def test_failures_and_streams_are_the_readers(reader: Sandbox, tiny: Path) -> None:
    assert reader.run("ingest", "nowhere.txt").code == 3
    assert reader.run("ingest", "new.txt", "--window", "7").code == 2
    assert status(reader) is None  # there is nothing to be asked
    done = reader.run("ingest", "-", "--name", "typed", "--model", tiny, *SMALL, "--json", stdin=NEW + "End.")
    assert (done.code, done.json["documents"][0]["name"]) == (0, "typed")
    assert status(reader) is not None
