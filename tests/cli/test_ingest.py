"""actqkv ingest through real processes: several files, stdin, limits, interruption, locks."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from sandbox import SAMPLES, SMALL, Done, Sandbox, finish

from actqkv_cli.store.locks import write_lock

LONG = (SAMPLES / "harbour-handbook.md").read_text()[:30_000]  # three segments


def test_a_bad_file_among_good_ones_costs_itself(made: tuple[Sandbox, Done]) -> None:
    box, done = made
    assert done.code == done.json["error"]["exit_code"] == 3
    assert [entry["name"] for entry in done.json["documents"]] == ["log.txt", "handbook.md", "Küste — Café.txt"]
    assert all(entry["tokens"] > 0 and not entry["unchanged"] for entry in done.json["documents"])
    assert len(done.json["failed"]) == 1
    assert "broken.txt" in done.json["failed"][0]
    assert "broken.txt: binary" in done.err
    assert {entry["id"] for entry in done.json["documents"]} == {
        path.name for path in box.home.iterdir() if not path.name.startswith(".")
    }


def test_progress_to_a_pipe_is_plain_lines(made: tuple[Sandbox, Done]) -> None:
    err = made[1].err
    assert "\r" not in err
    assert "\x1b" not in err
    assert "read handbook.md" in err
    assert "tokens/s" in err


def test_an_unchanged_file_is_skipped_and_a_changed_one_is_a_new_document(
    library: Sandbox, tiny: Path, tmp_path: Path
) -> None:
    box = library.copy(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in box.home.glob("*/*")}
    handbook, log = tmp_path / "handbook.md", tmp_path / "log.txt"
    shutil.copy(library.root / "files" / "handbook.md", handbook)
    log.write_text((library.root / "files" / "deeper" / "log.txt").read_text() + "And then it ended.\n")
    done = box.run("ingest", handbook, log, "--model", tiny, *SMALL, "--json", "-q")
    assert (done.code, done.err) == (0, "")
    unchanged, changed = done.json["documents"]
    assert (unchanged["unchanged"], changed["unchanged"]) == (True, False)
    assert unchanged["id"] == library.folder("handbook").name
    assert changed["id"] != library.folder("log").name
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in before.items())

    done = box.run("ask", "Who?", "--doc", "log.txt", "--json")
    assert done.code == done.json["error"]["exit_code"] == 2
    assert "2 documents match 'log.txt'" in done.err
    assert library.folder("log").name in done.err
    assert changed["id"] in done.err
    done = box.run("rm", "log.txt", "--yes")
    assert done.code == 2
    assert library.folder("log").name in done.err


def test_stdin_under_a_name_and_a_model_by_a_relative_path(library: Sandbox, tiny: Path, tmp_path: Path) -> None:
    box = Sandbox(tmp_path, library.cache)
    text = "The heron — «été» — stood there.\n" * 40
    done = box.run(
        "ingest", "-", "--name", "naïve notes", "--model", tiny.name, *SMALL, "-q", stdin=text, cwd=tiny.parent
    )
    assert (done.code, done.out, done.err) == (0, "", "")
    shown = box.run("show", "naïve notes", "--json").json
    assert (shown["folder"] + "/text.txt", shown["state"]) == (str(box.folder("naive-notes") / "text.txt"), "complete")
    assert (box.folder("naive-notes") / "text.txt").read_text() == text
    assert shown["manifest"]["model"]["name"] == str(tiny)  # asked from another folder, it is found there


def test_other_retrieval_heads_are_stored_for_what_was_read_before(
    library: Sandbox, tiny: Path, tmp_path: Path
) -> None:
    box = replace(library.copy(tmp_path), cache=tmp_path / "cache")
    shutil.copytree(library.cache, box.cache)
    (known,) = (box.cache / "calibration").iterdir()
    heads = json.loads(known.read_text())["heads"]
    known.write_text(json.dumps({"heads": heads[::-1]}))
    handbook, new = library.root / "files" / "handbook.md", tmp_path / "new.txt"
    new.write_text("The heron stood there.\n" * 60)
    segments = {path: path.stat().st_mtime_ns for path in box.folder("handbook").glob("kv-*")}

    assert box.run("ingest", new, "--model", tiny, *SMALL, "-q").code == 0
    both = ("ask", "Who?", "--doc", "new", "--doc", "handbook", "--max-tokens", "4")
    done = box.run(*both)
    assert done.code == 2
    assert "retrieval heads" in done.err
    assert "ingest both again" in done.err
    done = box.run("ingest", handbook, "--model", tiny, *SMALL)
    assert done.code == 0
    assert "completed handbook.md" in done.err
    assert box.run(*both).code == 0
    assert segments == {path: path.stat().st_mtime_ns for path in box.folder("handbook").glob("kv-*")}
    assert box.run("verify").code == 0
    for _ in range(2):  # where the model's heads are not known the document is as it is
        assert box.run("ingest", handbook, "--model", tiny, *SMALL, "--json").json["documents"][0]["unchanged"]
        known.unlink(missing_ok=True)


def test_exit_8_a_disk_limit_and_going_on_with_a_larger_one(library: Sandbox, tiny: Path, tmp_path: Path) -> None:
    box = Sandbox(tmp_path, library.cache)
    (tmp_path / "long.md").write_text(LONG)
    command: list[str | Path] = ["ingest", tmp_path / "long.md", "--model", tiny, *SMALL, "--json"]
    done = box.run(*command, "--disk-limit", "1500000")
    assert done.code == done.json["error"]["exit_code"] == 8
    assert "1,500,000" in done.json["error"]["message"]
    assert "same command again" in done.json["error"]["hint"]
    assert [path.name for path in box.folder("long").glob("kv-*")] == ["kv-00000.safetensors"]

    for args in (["ask", "Who?"], ["show", "long.md"], ["verify", "long.md"]):
        unfinished = box.run(*args)
        assert (unfinished.code, unfinished.out) == (4, "")
        assert "not finished: 4,096 of" in unfinished.err
        assert "resumes" in unfinished.err
    assert box.run("ls", "--json").json["documents"][0]["state"] == "unfinished"
    assert "[unfinished]" in box.run("ls").out

    done = box.run(*command, "--disk-limit", "100000000")
    assert done.code == 0
    assert done.json["documents"][0]["resumed_at"] == 4096
    assert "resumed at token 4,096" in done.err
    assert box.run("rm", "long.md", "-y", "--json").json["removed"][0]["name"] == "long.md"
    assert not list(box.home.glob("long*"))


def test_exit_130_and_exit_1_an_ingest_that_is_interrupted_while_others_are_at_it(
    library: Sandbox, tiny: Path, tmp_path: Path
) -> None:
    box = library.copy(tmp_path)
    path = tmp_path / "the long one.md"
    path.write_text(LONG)
    command: list[str | Path] = ["ingest", path, "--model", tiny, *SMALL]
    first = box.start(*command)
    while not any("kv-00000" in record.read_text() for record in box.home.glob("the-long-one-*/ingest.json")):
        assert first.poll() is None
        time.sleep(0.002)
    first.send_signal(signal.SIGSTOP)
    try:
        second = box.run(*command, "--json")
        assert second.code == second.json["error"]["exit_code"] == 1
        assert "ingested or removed by another process" in second.json["error"]["message"]
        assert "try again" in second.err
        removed = box.run("rm", "the long one.md", "-y")
        assert removed.code == 1
        assert "by another process" in removed.err
        answered = box.run("ask", "Who?", "--doc", "log.txt", "--max-tokens", "2", "--json")
        assert answered.code == 0
        assert answered.json["document"] == library.folder("log").name
    finally:
        first.send_signal(signal.SIGINT)
        first.send_signal(signal.SIGCONT)
    done = finish(first)
    assert (done.code, done.out) == (130, "")
    assert "error: interrupted" in done.err
    # The command that resumes it, as it can be pasted into a shell.
    assert f"`actqkv ingest '{path}' --model {tiny} --device cpu --dtype float32` resumes" in done.err

    done = box.run(*command, "--json")
    assert done.code == 0
    assert done.json["documents"][0]["resumed_at"] == 4096
    sound = box.run("verify", "--json")
    assert (sound.code, sound.json["damaged"]) == (0, [])
    assert len(sound.json["documents"]) == 4


def test_what_one_document_fails_for_costs_no_other(library: Sandbox, tiny: Path, tmp_path: Path) -> None:
    """One is being ingested by another process, one is too large for the library, and one has no text."""
    box = Sandbox(tmp_path, library.cache)
    files = {name: tmp_path / name for name in ("busy.md", "large.md", "none.txt", "small.md")}
    files["busy.md"].write_text(LONG[:3000])
    files["large.md"].write_text(LONG)
    files["none.txt"].write_text(" ")
    files["small.md"].write_text(LONG[3000:6000])
    command: list[str | Path] = ["ingest", *files.values(), "--model", tiny, *SMALL, "--json"]
    assert box.run("ingest", files["busy.md"], "--model", tiny, *SMALL).code == 0
    name = box.folder("busy").name
    assert box.run("rm", name, "-y").code == 0
    with write_lock(box.home, name):
        done = box.run(*command, "--disk-limit", "1000000")
    assert [entry["name"] for entry in done.json["documents"]] == ["small.md"]
    told = [message.split(": ", 1)[0] for message in done.json["failed"]]
    assert [Path(label).name for label in told] == ["busy.md", "large.md", "none.txt"]
    assert done.err.count("error: ") == 4  # a line for each, and at last how many there were
    assert "error: large.md: the library takes" in done.err
    assert done.code == done.json["error"]["exit_code"] == 1  # of the first
    assert done.json["error"]["message"] == "3 of 4 documents could not be read"
    assert box.run(*command).json["documents"][-1]["unchanged"]


def test_a_full_disk_is_full_for_all(library: Sandbox, tiny: Path, tmp_path: Path) -> None:
    box = Sandbox(tmp_path, library.cache)
    for name in ("a.md", "b.md"):
        (tmp_path / name).write_text(LONG[:3000] + name)
    full = (
        "import errno, os\n"
        "from actqkv_cli.__main__ import main\n"
        "from actqkv_cli.store import files, writer\n"
        "def refuse(path, chunks):\n"
        "    with files.write_errors(path):\n"
        "        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "writer.write_atomic = refuse\n"
        "main()"
    )
    words: list[str | Path] = [sys.executable, "-c", full, "ingest", "a.md", "b.md", "--model", tiny, *SMALL, "--json"]
    done = subprocess.run(words, env=box.env, cwd=tmp_path, capture_output=True, text=True)
    result = json.loads(done.stdout)
    assert (done.returncode, result["documents"], result["failed"]) == (8, [], [])
    assert "no space left" in result["error"]["message"]
    assert done.stderr.count("error: ") == 1


def test_two_ingests_of_one_file_at_once(library: Sandbox, tiny: Path, tmp_path: Path) -> None:
    box = Sandbox(tmp_path, library.cache)
    path = tmp_path / "a.txt"
    path.write_text(LONG[:3000])
    both = [box.start("ingest", path, "--model", tiny, *SMALL, "--json") for _ in range(2)]
    results = [finish(process) for process in both]
    assert 0 in {done.code for done in results}
    for done in results:
        if done.code:  # else it came after the other: unchanged
            assert done.code == done.json["error"]["exit_code"] == 1
            assert "by another process" in done.err or "in the library already" in done.err
    assert [entry["state"] for entry in box.run("ls", "--json").json["documents"]] == ["complete"]


def test_exit_1_what_is_being_ingested_cannot_be_asked(library: Sandbox) -> None:
    name = library.folder("log").name
    with write_lock(library.home, name):
        done = library.run("ask", "Who?", "--doc", name, "--json")
    assert done.code == done.json["error"]["exit_code"] == 1
    assert "is being ingested or removed by another process" in done.err


def test_on_a_terminal_there_is_a_bar(library: Sandbox, tiny: Path, tmp_path: Path) -> None:
    box = Sandbox(tmp_path, library.cache).with_env(TERM="xterm")
    (tmp_path / "a.txt").write_text(LONG[:3000])
    leader, follower = pty.openpty()
    process = box.start("ingest", tmp_path / "a.txt", "--model", tiny, *SMALL, stderr=follower)
    os.close(follower)
    shown = b""
    while chunk := _read(leader):
        shown += chunk
    out, _ = process.communicate()
    assert (process.returncode, out) == (0, "")
    assert b"reading" in shown
    assert b"Traceback" not in shown
    assert b"read a.txt (1 page" in shown


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other end is closed
        return b""


def test_50_kills_or_fewer(library: Sandbox, tiny: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments; ACTQKV_KILLS says how many."""
    kills = int(os.environ.get("ACTQKV_KILLS", "6"))
    path = tmp_path / "long.md"
    path.write_text(LONG)
    script = Path(__file__).with_name("ingest_and_be_killed.py")
    box = Sandbox(tmp_path, library.cache)
    command = [sys.executable, str(script), str(kills), str(tmp_path), str(path), "--model", str(tiny), *SMALL]
    done = subprocess.run(command, env=box.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    figures = json.loads(done.stdout)
    assert figures["kills"] == kills
    assert figures["identical"] == kills
    assert figures["resumed"] > 0


@pytest.mark.parametrize("command", ["ls", "show"])
def test_looking_imports_no_torch(library: Sandbox, command: str) -> None:
    script = (
        f"import sys; sys.argv = ['actqkv', '{command}']\n"
        "from actqkv_cli.main import app; app(standalone_mode=False)\n"
        "print('LOADED', *({'torch', 'transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], env=library.env, capture_output=True, text=True)
    assert done.stderr.split("LOADED", 1)[1].strip() == ""
