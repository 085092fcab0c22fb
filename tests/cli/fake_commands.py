"""Imported by every process of a sandbox that tests the worker: `chat` then does what the test asks for."""

import json
import os
import signal
import sys
import time
from collections.abc import Generator
from pathlib import Path

import typer

from actqkv_cli import main
from actqkv_cli.invocation import Invocation
from actqkv_cli.runtime import OtherWorkerNeeded
from actqkv_cli.worker import server

server._SEND = float(os.environ.get("FAKE_SEND", server._SEND))
main.app.registered_commands[:] = [
    command for command in main.app.registered_commands if command.callback and command.callback.__name__ != "chat"
]
_keeps = ""


@main.app.command("chat")
def fake(
    context: typer.Context, words: list[str], keep_alive: main.KeepAlive = None, as_json: main.Json = False
) -> Generator[str, str | None, None] | None:
    """What a test asks for."""
    context.obj.delegate(main._settings(locals()).keep_alive)
    return globals()[words[0]](context.obj, *words[1:])


def pid(call: Invocation) -> None:
    print(os.getpid())


def see(call: Invocation, *_: str) -> None:
    """All that a command can see of its caller."""
    seen = {
        "cwd": str(Path.cwd()),
        "word": os.environ.get("WORD"),
        "columns": os.environ.get("COLUMNS"),
        "terminals": [stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)],
        "stdin": list(sys.stdin.buffer.read()),
    }
    print(json.dumps(seen), flush=True)
    print("ein Wörtchen auf stderr", file=sys.stderr)


def count(call: Invocation, number: str, seconds: str = "0.05") -> None:
    for i in range(int(number)):
        sys.stdout.write(f"{i} ")
        sys.stdout.flush()
        call.check()
        time.sleep(float(seconds))
    print()


def fail(call: Invocation, message: str) -> None:
    raise ZeroDivisionError(message)


def die(call: Invocation) -> None:
    print("half an", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def hang(call: Invocation) -> None:
    print("hanging", flush=True)
    time.sleep(60)


def flood(call: Invocation, megabytes: str) -> None:
    for _ in range(int(megabytes)):
        print("x" * (1 << 20))


def keep(call: Invocation, name: str) -> None:
    global _keeps
    if _keeps not in ("", name):
        raise OtherWorkerNeeded(f"{_keeps} is kept here")
    _keeps = name
    print(name, os.getpid())


def talk(call: Invocation, closed: str = "") -> Generator[str, str | None, None]:
    """Repeats what it is told, counts when it is told to, and tells a file when it is closed."""
    try:
        while (line := (yield "say> ")) is not None:
            try:
                count(call, "200") if line == "count" else print(f"you said {line!r}", flush=True)
            except KeyboardInterrupt:
                print("stopped", flush=True)
        print("bye")
    finally:
        if closed:
            Path(closed).touch()
