"""The process that reads documents and then is the worker, so that their first question is as quick as the second.

What its user called, `client.read`, waits for its exit code, and leaves.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from actqkv_cli import terminal
from actqkv_cli.worker import endpoint, server

if TYPE_CHECKING:
    from actqkv_cli.config import Settings

# Sent to another worker by a process that imports nothing else; the second token takes a decoding step.
_HAND_OVER = "import sys; from actqkv_cli.worker import client; client.hand_over(sys.argv[1:])"
_DRY_RUN = ["ask", "What is this about?", "--max-tokens", "2", "--quiet"]


def main(caller: socket.socket, argv: Sequence[str]) -> None:
    """Carry out an `ingest`, tell its exit code, and be the worker if there is none.

    Raises SystemExit with the code where nothing was read.
    """
    # A terminal sends Ctrl-C to us too. What counts is what the caller tells: a byte for each, and its end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    began, surroundings = time.perf_counter(), server.Surroundings.now()
    from actqkv_cli.commands.ask import prepare
    from actqkv_cli.invocation import Invocation, carry_out
    from actqkv_cli.runtime import Runtime

    keep_alive, done = 0.0, threading.Event()
    read: list[tuple[str, Settings]] = []
    signal.signal(signal.SIGUSR1, signal.default_int_handler)

    def begin(seconds: float) -> None:
        nonlocal keep_alive
        keep_alive = seconds
        threading.Thread(target=_listen_to, args=[caller, done], daemon=True).start()

    interrupts = terminal.Interrupts()
    with Runtime() as runtime:
        call = Invocation(
            argv,
            began,
            delegate=begin,
            runtime=lambda: contextlib.nullcontext(runtime),
            check=interrupts.check,
            prepare=lambda document, settings: read.append((document, settings)),
        )
        code = carry_out(call, interrupts)
        done.set()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        if not read:  # nothing is left to do: the caller's wait is for our end
            raise SystemExit(code)
        worker = _worker(surroundings, keep_alive)
        with contextlib.suppress(OSError):
            caller.send(bytes([code]))
        if worker:
            with contextlib.suppress(Exception):  # who asks will hear of it
                prepare(*read[-1], runtime)
            worker.serve(runtime)
        else:
            _dry_run(*read[-1], surroundings)


def _listen_to(caller: socket.socket, done: threading.Event) -> None:
    """A caller that was killed takes us with it."""
    while caller.recv(1):
        if not done.is_set():
            os.kill(os.getpid(), signal.SIGUSR1)
    if not done.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


def _worker(surroundings: server.Surroundings, keep_alive: float) -> server.Worker | None:
    """This process as the worker: without the user's terminal, streams and folder. None if there is one, or can be
    none."""
    path = endpoint.socket_path()
    assert path is not None  # or the caller would have read by itself
    with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
        endpoint.make_folder(path)
        streams = os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_WRONLY), endpoint.open_log(path)
        for stream in streams:
            opened.callback(os.close, stream)
        if worker := server.listen(surroundings, keep_alive):
            for descriptor, stream in enumerate(streams):
                os.dup2(stream, descriptor)
            os.setsid()
            os.chdir("/")
            return worker
    return None


def _dry_run(document: str, settings: "Settings", surroundings: server.Surroundings) -> None:
    """Have the worker that is there make the document ready; nobody waits for that, or hears of it."""
    options = ["--doc", document, "--home", str(settings.home), "--keep-alive", str(settings.keep_alive)]
    options += ["--device", settings.device, "--model", settings.model, *["--offline"] * settings.offline]
    nothing = subprocess.DEVNULL
    with contextlib.suppress(OSError):
        subprocess.Popen(
            [sys.executable, "-P", "-c", _HAND_OVER, *_DRY_RUN, *options],
            stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True, env=surroundings.environ,
        )  # fmt: skip


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
