"""The worker through real processes: the same answers, and what happens to those who are killed, wait or come first."""

import contextlib
import fcntl
import json
import os
import pty
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sandbox import ROOT, Done, Sandbox, finish
from workers import alive, connect, endpoint, status, until, with_worker

FAKES = Path(__file__).parent / "fake_commands.py"
HEAVY = {"torch", "transformers", "pydantic", "numpy", "rich", "typer", "click", "prompt_toolkit", "filelock"}
QUESTION = "Wer stand im «Café» an der Küste?"
ASK = ["--doc", "Küste — Café.txt", "--device", "cpu", "--budget", "1024", "--max-tokens", "24"]

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="there is no worker without Unix sockets")


def numbers(count: int) -> str:
    return "".join(f"{i} " for i in range(count)) + "\n"


@pytest.fixture
def fake(box: Sandbox, tmp_path: Path) -> Iterator[Sandbox]:
    """`chat` is what fake_commands.py makes of it."""
    (tmp_path / "fakes").mkdir()
    shutil.copy(FAKES, tmp_path / "fakes")
    custom = "import os\nif not os.environ.get('NO_FAKES'):\n    import fake_commands\n"
    (tmp_path / "fakes" / "sitecustomize.py").write_text(custom)
    path = os.pathsep.join([str(tmp_path / "fakes"), str(ROOT), str(ROOT / "kernels")])
    yield from with_worker(box.with_env(PYTHONPATH=path))


def pid_of(done: Done) -> int:
    assert done.code == 0, done.err
    return int(done.out.split()[-1])


def begin(box: Sandbox, *args: str) -> "subprocess.Popen[str]":
    """A command that has begun to write. A little of that is read already."""
    process = box.start(*args)
    assert process.stdout is not None
    assert process.stdout.read(1)
    return process


def until_waiting(box: Sandbox, count: int) -> None:
    """Until so many commands wait for the one that the worker is busy with."""
    while box.run("worker", "status", "--json").json["waiting"] < count:
        time.sleep(0.1)


def is_end_of(out: str, numbers: str) -> bool:
    """Whether this is what was left to read of a command that had begun to count."""
    return numbers.endswith(out) and len(out) > len(numbers) - 6


# The same answers.


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    """Of a result: what must not depend on who answers, nor on what is loaded already."""
    usage = {key: value for key, value in result["usage"].items() if key != "bytes_read"}
    return {**result, "usage": usage, "timings": sorted(result["timings"])}


def test_a_worker_answers_what_the_process_itself_would(library: Sandbox, served: Sandbox) -> None:
    here = library.run("ask", QUESTION, *ASK, "--json")
    assert here.code == 0
    assert served.run("worker", "stop").code == 0  # so that one starts anew
    first, again = (served.run("ask", QUESTION, *ASK, "--json") for _ in range(2))
    assert (first.code, again.code) == (0, 0)
    assert without_times(first.json) == without_times(again.json) == without_times(here.json)
    assert again.json["timings"]["first_token"] < first.json["timings"]["first_token"]

    text = served.run("ask", QUESTION, *ASK)
    assert text.out == here.json["answer"] + "\n"
    assert "Sources:\n  1. Küste — Café.txt, page 1 (" in text.err
    piped = served.run("ask", "-", *ASK, "-q", stdin=QUESTION + "\n")
    assert (piped.out, piped.err) == (text.out, "")
    events = [json.loads(line) for line in served.run("ask", QUESTION, *ASK, "--jsonl").out.splitlines()]
    assert "".join(event["text"] for event in events if event["type"] == "token") == here.json["answer"]
    found = status(served)
    assert found is not None
    assert found["served"] == 5
    assert found["documents"] == [library.folder("kuste").name]


WRONG = {
    "a policy that is not": ["ask", QUESTION, *ASK, "--policy", "guess"],
    "a document that is not": ["ask", QUESTION, "--doc", "atlantis"],
    "a document that is not, in JSON": ["ask", QUESTION, "--doc", "atlantis", "--json"],
    "a flag that is not": ["ask", "x", "--budgte", "5", "--jsonl"],
    "a setting out of range": ["ask", "x", "--budget", "5"],
    "an empty question": ["ask", " "],
    "help": ["ask", "--help"],
}


@pytest.mark.parametrize("case", WRONG)
def test_a_worker_refuses_what_the_process_itself_would(library: Sandbox, served: Sandbox, case: str) -> None:
    served.run("ask", " ")  # which starts a worker if none runs
    before = status(served)
    assert before is not None
    assert served.run(*WRONG[case]) == library.run(*WRONG[case])
    after = status(served)
    assert after is not None
    assert (after["pid"], after["served"]) == (before["pid"], before["served"] + 1)


def test_another_library_gets_another_worker_and_what_was_removed_is_not_answered_from_memory(
    served: Sandbox, tmp_path: Path
) -> None:
    ask = ["ask", QUESTION, *ASK, "--json"]
    here = served.run(*ask)
    box = served.copy(tmp_path)
    before = box.run(*ask)
    assert before.code == 0
    assert without_times(before.json) == without_times(here.json)
    found = status(served)
    assert found is not None
    assert (found["home"], found["served"]) == (str(box.home), 1)

    assert box.run("rm", "Küste — Café.txt", "--yes").code == 0
    assert box.run(*ask).code == 4
    text = tmp_path / "Küste — Café.txt"
    text.write_text("Ein ganz anderer Text, von einem Leuchtturm.\n" * 30, encoding="utf-8")
    tiny = before.json["model"]["name"]
    assert box.run("ingest", text, "--model", tiny, "--device", "cpu", "--dtype", "float32").code == 0
    after = box.run(*ask)
    assert after.code == 0
    assert all("Leuchtturm" in source["text"] for source in after.json["sources"])


def test_a_command_sees_its_callers_world(fake: Sandbox, tmp_path: Path) -> None:
    here = tmp_path / "hier drüben"
    here.mkdir()
    ways = []
    for keep_alive in ("0", "60s", "60s"):
        box = fake.with_env(ACTQKV_KEEP_ALIVE=keep_alive, WORD="Möwe \udcff", COLUMNS="61")
        ways.append(box.run("chat", "see", "-", stdin=b"\xff\xfe \xc3\xa4\n", cwd=here))
    assert ways[0] == ways[1] == ways[2]
    seen = ways[0].json
    assert (seen["cwd"], seen["columns"], seen["terminals"]) == (str(here), "61", [False] * 3)
    assert bytes(seen["stdin"]) == b"\xff\xfe \xc3\xa4\n"
    # What one client has in its environment is not there for the next.
    assert fake.run("chat", "see").json["word"] is None


def test_an_unforeseen_failure_is_told_and_survived(fake: Sandbox) -> None:
    first = pid_of(fake.run("chat", "pid"))
    done = fake.run("chat", "fail", "an oversight", "--json")
    assert done.code == done.json["error"]["exit_code"] == 1
    assert "an oversight" in done.err
    assert pid_of(fake.run("chat", "pid")) == first


# Who it is for, and how long it stays.


def test_the_thin_client_imports_nothing_slow(fake: Sandbox) -> None:
    first = pid_of(fake.run("chat", "pid"))
    script = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        "sys.argv = ['actqkv', 'chat', 'pid']\n"
        "from actqkv_cli.__main__ import main; main()"
    )
    env = fake.with_env(NO_FAKES="1").env
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert int(done.stdout) == first
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    assert "actqkv_cli" in loaded
    assert not loaded & HEAVY


def test_one_worker_serves_all_and_ends_when_nobody_asks(fake: Sandbox) -> None:
    box = fake.with_env(ACTQKV_KEEP_ALIVE="4s")
    first = pid_of(box.run("chat", "pid"))
    assert pid_of(box.run("chat", "pid", "--keep-alive", "2s")) == first
    assert alive(first)
    until(lambda: not alive(first), 10)
    assert not endpoint(fake).exists()
    assert pid_of(box.run("chat", "pid")) != first


@pytest.mark.parametrize("how", ["environment", "flag", "file"])
def test_keep_alive_0_uses_no_worker(fake: Sandbox, how: str) -> None:
    first = pid_of(fake.run("chat", "pid"))
    box, more = fake, []
    if how == "flag":
        more = ["--keep-alive", "0"]
    elif how == "environment":
        box = fake.with_env(ACTQKV_KEEP_ALIVE="0")
    else:
        fake.config.parent.mkdir(parents=True)
        fake.config.write_text("keep_alive = 0\n")
        box = fake.with_env(ACTQKV_KEEP_ALIVE="")
    process = box.start("chat", "pid", *more)
    done = finish(process)
    assert pid_of(done) == process.pid != first
    assert done.err == ""
    again = box.run("chat", "see", "-", *more, stdin="twice read\n")
    assert bytes(again.json["stdin"]) == b"twice read\n"
    if found := status(fake):
        os.kill(found["pid"], signal.SIGKILL)
    assert pid_of(box.run("chat", "pid", *more)) > 0
    assert status(fake) is None


@pytest.mark.parametrize("wrong", ["soon", "-5", "10 minutes", "1e3"])
def test_a_keep_alive_that_is_no_duration_is_named(fake: Sandbox, wrong: str) -> None:
    done = fake.with_env(ACTQKV_KEEP_ALIVE=wrong).run("chat", "pid")
    assert (done.code, done.out) == (2, "")
    assert f"setting keep_alive: should be a duration such as 90s, 10m or 2h, or 0, and not '{wrong}'" in done.err


def test_status_and_stop(fake: Sandbox) -> None:
    assert fake.run("worker", "status", "--json").json == {"running": False}
    assert fake.run("worker", "status") == Done(0, "not running\n", "")
    assert fake.run("worker", "stop") == Done(0, "", "no worker is running\n")
    first = pid_of(fake.run("chat", "pid"))
    told = fake.run("worker", "status", "--json").json
    assert (told["running"], told["pid"], told["served"], told["busy"]) == (True, first, 1, False)
    assert 0 < told["remaining_seconds"] <= 60
    assert told["memory_bytes"] > 1 << 20
    assert (told["model"], told["documents"]) == (None, [])
    assert str(first) in fake.run("worker", "status").out
    process = begin(fake, "chat", "count", "200")
    assert fake.run("worker", "stop") == Done(0, "", "the worker is stopped\n")
    assert not alive(first)
    assert finish(process).code == 130
    assert fake.run("worker", "status", "--json").json == {"running": False}


def test_a_worker_that_does_not_answer_is_stopped_too(fake: Sandbox) -> None:
    first = pid_of(fake.run("chat", "pid"))
    os.kill(first, signal.SIGSTOP)
    assert fake.run("worker", "stop").code == 0
    until(lambda: not alive(first))


# In turn.


def test_clients_are_served_in_turn_and_what_they_get_is_not_mixed(fake: Sandbox) -> None:
    processes = [begin(fake, "chat", "count", "12")]
    for number in range(13, 16):
        processes.append(fake.start("chat", "count", str(number)))
    ended = []
    for process, number in zip(processes, range(12, 16), strict=True):
        done = finish(process)
        ended.append(time.monotonic())
        assert (done.code, done.err) == (0, "")
        assert done.out == numbers(number) or (number == 12 and is_end_of(done.out, numbers(12)))
    assert ended == sorted(ended)


def test_those_who_come_first_at_once_start_one_worker(fake: Sandbox) -> None:
    processes = [fake.start("chat", "pid") for _ in range(5)]
    done = [finish(process) for process in processes]
    assert len({pid_of(each) for each in done}) == 1
    assert {each.err for each in done} == {""}
    assert pid_of(done[0]) not in {process.pid for process in processes}


def test_ctrl_c_stops_the_answer_and_not_the_worker(fake: Sandbox) -> None:
    first = pid_of(fake.run("chat", "pid"))
    for more in [[], ["--json"]]:
        process = begin(fake, "chat", "count", "200", *more)
        waiting = fake.start("chat", "count", "5")
        process.send_signal(signal.SIGINT)
        done = finish(process)
        assert done.code == 130
        assert done.err == "error: interrupted\n"
        assert not more or '"kind": "interrupted"' in done.out
        assert finish(waiting).out == numbers(5)
    assert pid_of(fake.run("chat", "pid")) == first


def test_a_second_ctrl_c_leaves_at_once(fake: Sandbox) -> None:
    process = begin(fake, "chat", "hang")
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None  # the worker may still have something to say
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert finish(process).code == 130
    assert time.monotonic() - began < 1


def test_those_who_wait_may_leave(fake: Sandbox) -> None:
    first = begin(fake, "chat", "count", "200")
    asked, killed = fake.start("chat", "count", "200"), fake.start("chat", "count", "200")
    last = fake.start("chat", "count", "3")
    until_waiting(fake, 3)
    asked.send_signal(signal.SIGINT)
    killed.kill()
    assert finish(asked).code == 130
    finish(killed)
    first.kill()  # and so may the one who is served
    began = time.monotonic()
    assert finish(last).out == numbers(3)
    assert time.monotonic() - began < 5  # two hundred take ten seconds
    finish(first)


def test_a_reader_that_goes_away_is_no_failure(fake: Sandbox) -> None:
    process = begin(fake, "chat", "count", "200")
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    done = finish(process)
    assert (done.code, done.err) == (0, "")
    until(lambda: not (status(fake) or {"busy": True})["busy"], 5)


def test_a_client_that_does_not_read_holds_nobody_up_for_ever(fake: Sandbox) -> None:
    box = fake.with_env(FAKE_SEND="0.5")
    process = begin(box, "chat", "flood", "20")
    process.send_signal(signal.SIGSTOP)
    assert box.run("chat", "count", "3", timeout=10).out == numbers(3)
    process.kill()
    process.communicate()


# What goes wrong.


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_worker_that_dies_is_told_of_and_replaced(fake: Sandbox, more: list[str]) -> None:
    first = pid_of(fake.run("chat", "pid"))
    done = fake.run("chat", "die", *more)
    assert done.code == 1
    assert done.err.startswith("error: the worker ended while it answered")
    assert str(endpoint(fake).with_suffix(".log")) in done.err
    assert not more or json.loads(done.out.removeprefix("half an\n"))["error"]["exit_code"] == 1
    assert pid_of(fake.run("chat", "pid")) != first


def test_those_who_wait_for_a_worker_that_dies_get_another(fake: Sandbox) -> None:
    process = begin(fake, "chat", "count", "200")
    waiting = fake.start("chat", "count", "3")
    time.sleep(0.7)
    found = status(fake)
    assert found is not None
    os.kill(found["pid"], signal.SIGKILL)
    assert finish(process).code == 1
    assert finish(waiting) == Done(0, numbers(3), "")


def test_a_dead_socket_is_noticed(fake: Sandbox) -> None:
    first = pid_of(fake.run("chat", "pid"))
    os.kill(first, signal.SIGKILL)
    until(lambda: not alive(first))
    assert endpoint(fake).is_socket()
    done = fake.run("chat", "pid")
    assert done.err == ""
    assert pid_of(done) != first


def test_a_worker_whose_folder_was_cleaned_up_leaves_its_successor_alone(fake: Sandbox) -> None:
    first = pid_of(fake.run("chat", "pid", "--keep-alive", "1s"))
    shutil.rmtree(endpoint(fake).parent)
    second = pid_of(fake.run("chat", "pid"))
    until(lambda: not alive(first))
    assert pid_of(fake.run("chat", "pid")) == second


def test_a_worker_of_other_code_or_environment_is_replaced_and_ends_what_it_has_begun(fake: Sandbox) -> None:
    first = pid_of(fake.run("chat", "pid"))
    process = begin(fake, "chat", "count", "60")
    second = pid_of(fake.with_env(OMP_NUM_THREADS="2").run("chat", "pid"))
    assert second != first
    assert alive(first)
    assert is_end_of(finish(process).out, numbers(60))
    until(lambda: not alive(first))
    assert status(fake)["pid"] == second  # type: ignore[index]

    connection = connect(fake)
    assert connection is not None
    connection.send(run={"argv": ["chat", "pid"]}, fingerprint={"version": "9.9"})
    frame = connection.receive()
    assert frame is not None
    assert "version" in frame["replaced"]
    connection.close()
    until(lambda: not alive(second))
    assert not endpoint(fake).exists()


def test_a_worker_that_keeps_something_else_is_replaced(fake: Sandbox) -> None:
    name, first = fake.run("chat", "keep", "one").out.split()
    done = fake.run("chat", "keep", "two")
    assert (done.code, done.err) == (0, "")
    assert done.out.split()[0] == "two"
    assert done.out.split()[1] != first
    assert name == "one"


@pytest.mark.parametrize("wrong", ["open", "a file", "another's"])
def test_a_runtime_folder_that_others_may_have_made_is_not_used(fake: Sandbox, wrong: str) -> None:
    folder = endpoint(fake).parent
    if wrong == "a file":
        folder.write_text("")
    else:
        folder.mkdir(mode=0o700)
        if wrong == "open":
            folder.chmod(0o755)
        elif os.getuid():
            pytest.skip("only root can give a folder away")
        else:
            os.chown(folder, 12345, 12345)
    trap = socket.socket(socket.AF_UNIX)
    if wrong != "a file":
        trap.bind(str(endpoint(fake)))
        trap.listen()
        trap.settimeout(0)
    process = fake.start("chat", "pid")
    done = finish(process)
    assert pid_of(done) == process.pid
    assert done.err.startswith("note: answering without a worker, which could not be started: ")
    assert str(folder) in done.err
    if wrong != "a file":
        with pytest.raises(BlockingIOError):  # nobody has even connected
            trap.accept()
    trap.close()


def test_where_no_socket_can_be_there_is_no_worker_and_no_word_of_it(fake: Sandbox, tmp_path: Path) -> None:
    box = fake.with_env(XDG_RUNTIME_DIR=str(tmp_path / ("long" * 30)))
    process = box.start("chat", "pid")
    done = finish(process)
    assert (pid_of(done), done.err) == (process.pid, "")


def test_only_its_user_may_connect(fake: Sandbox) -> None:
    fake.run("chat", "pid")
    folder = endpoint(fake).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    if os.getuid() == 0:  # who could connect even so is still sent away
        folder.chmod(0o755)
        folder.parent.chmod(0o755)
        endpoint(fake).chmod(0o666)
        script = (
            "import os, socket; os.setuid(12345); s = socket.socket(socket.AF_UNIX)\n"
            f"s.connect({str(endpoint(fake))!r}); print('connected', flush=True)\n"
            "s.sendall(b'{\"status\": true}\\n'); print(s.recv(100))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.stdout.removeprefix("connected\n") in ("", "b''\n")


# Conversations.


def test_a_conversation_is_the_same_with_a_worker(fake: Sandbox, tmp_path: Path) -> None:
    lines = "hello\nÄpfel und Möwen\nwithout an end"
    ways = [fake.with_env(ACTQKV_KEEP_ALIVE=k).run("chat", "talk", stdin=lines) for k in ("0", "60s", "60s")]
    assert ways[0] == ways[1] == ways[2]
    assert ways[0].out == "you said 'hello'\nyou said 'Äpfel und Möwen'\nyou said 'without an end'\nbye\n"
    assert (ways[0].code, ways[0].err) == (0, "")


def test_others_are_served_between_the_lines_of_a_conversation_and_it_ends_with_its_client(
    fake: Sandbox, tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    process = fake.start("chat", "talk", str(closed), stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    for word in ("one", "two"):
        process.stdin.write(word + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == f"you said {word!r}\n"
        assert fake.run("chat", "count", "2").out == numbers(2)
    found = status(fake)
    assert found is not None
    assert (found["conversations"], found["remaining_seconds"]) == (1, None)
    process.kill()
    process.communicate()
    until(closed.exists)
    until(lambda: status(fake)["conversations"] == 0)  # type: ignore[index]


def test_a_conversation_is_told_when_the_worker_is_stopped(fake: Sandbox, tmp_path: Path) -> None:
    process = fake.start("chat", "talk", str(tmp_path / "closed"), stdin=subprocess.PIPE)
    until(lambda: (status(fake) or {"conversations": 0})["conversations"])
    assert fake.run("worker", "stop").code == 0
    done = finish(process, "too late\n")
    assert (done.code, done.out) == (1, "")
    assert done.err == "error: the worker was stopped\n"
    assert (tmp_path / "closed").exists()


class Terminal:
    """A command on a terminal of its own, and what it has shown so far."""

    def __init__(self, box: Sandbox, *args: str, size: tuple[int, int] = (24, 80)) -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, size)
        self.process = box.with_env(TERM="xterm").start(
            *args, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, preexec_fn=_own_terminal
        )
        os.close(slave)
        self.shown = ""

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def press(self, key: str, text: str) -> None:
        """A key, and again where it came before the line was ready for it, until `text` is shown."""
        for _ in range(9):
            self.type(key)
            with contextlib.suppress(AssertionError):
                return self.wait_for(text, 2)
        return self.wait_for(text)

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Until `text` is shown, escape sequences left out; what came before it is forgotten."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            ready, _, _ = select.select([self._master], [], [], max(0, deadline - time.monotonic()))
            assert ready, self.shown
            try:
                data = os.read(self._master, 4096).decode(errors="replace")
            except OSError:  # the other end is closed
                data = ""
            assert data, self.shown
            if "\x1b[6n" in data:
                os.write(self._master, b"\x1b[1;1R")  # where the cursor is
            self.shown += re.sub(r"\x1b\[[?>=]?[0-9;]*[a-zA-Z]|\x1b[=>]", "", data)
        self.shown = self.shown.split(text, 1)[1]

    def close(self) -> int:
        code = self.process.wait(10)
        os.close(self._master)
        return code


def _own_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.parametrize("keep_alive", ["0", "60s"])
def test_on_a_terminal_lines_are_edited_and_remembered_and_ctrl_c_stops_an_answer(
    fake: Sandbox, keep_alive: str
) -> None:
    box = fake.with_env(ACTQKV_KEEP_ALIVE=keep_alive, XDG_STATE_HOME=str(fake.root / "state"))
    user = Terminal(box, "chat", "talk")
    user.wait_for("say>")
    user.type("helol\x1b[D\x7fl\x1b[C\x7fo\r")  # cursor left, backspace, l, cursor right, backspace, o
    user.wait_for("you said 'hello'")
    user.wait_for("say>")
    user.type("not this\x03")
    user.wait_for("say>")
    user.press("\x1b[A", "hello")  # up: the line before, once the history is there
    user.type("\r")
    user.wait_for("you said 'hello'")
    user.wait_for("say>")
    user.type("count\r")
    user.wait_for("3 4 5 ")
    user.type("\x03")
    user.wait_for("stopped")
    user.wait_for("say>")
    user.type("\x04")
    user.wait_for("bye")
    assert user.close() == 0
    history = fake.root / "state" / "actqkv" / "history"
    assert "+hello" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("size", [(24, 80), (0, 0)])
def test_on_a_terminal_that_may_not_know_its_size_sources_are_shown(served: Sandbox, size: tuple[int, int]) -> None:
    user = Terminal(served, "ask", QUESTION, *ASK, size=size)
    user.wait_for("Sources:")
    user.wait_for("first token after")
    assert user.close() == 0


def test_a_real_conversation_on_a_terminal(served: Sandbox) -> None:
    """What `ask` without a question begins."""
    user = Terminal(served, "ask", *ASK)
    user.wait_for("ask, or /help")
    for _ in range(2):
        user.wait_for(">")
        user.type(f"{QUESTION}\r")
        user.wait_for("page 1]")
    user.type("/sources\r")
    user.wait_for("Kranich")
    user.type("/quit\r")
    assert user.close() == 0


def test_two_hundred_asks_with_clients_killed_at_random(library: Sandbox, served: Sandbox) -> None:
    """No answer is wrong or another's, and memory stays as it is."""
    words = ["bell", "light", "keeper", "harbour", "Café", "boat"]
    asks = [["ask", f"Who saw the {word}?", *ASK[2:], "--doc", doc] for word in words for doc in ("handbook", "log")]
    draw = random.Random(0)
    expected = {tuple(ask): served.run(*ask) for ask in asks}
    assert all(done.code == 0 for done in expected.values())
    assert len({done.out for done in expected.values()}) > len(asks) // 2  # or a mixture would go unnoticed
    waiting: list[tuple[list[str], subprocess.Popen[str]]] = []
    memory = []
    for number in range(200):
        ask = draw.choice(asks)
        process = served.start(*ask)
        if draw.random() < 0.3:
            time.sleep(0.15 * draw.random())
            process.send_signal(draw.choice([signal.SIGKILL, signal.SIGINT, signal.SIGTERM]))
            process.communicate()
        else:
            waiting.append((ask, process))
        if len(waiting) == 3:
            ask, process = waiting.pop(0)
            done = finish(process)
            assert (done.code, done.out) == (0, expected[tuple(ask)].out)
        if number in (60, 199):
            memory.append(status(served)["memory_bytes"])  # type: ignore[index]
    for ask, process in waiting:
        assert finish(process).out == expected[tuple(ask)].out
    assert memory[1] < memory[0] * 1.05
