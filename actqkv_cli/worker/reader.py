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

from actqkv_cli import terminal
from actqkv_cli.worker import endpoint, server

# Answering opens, indexes and compiles all that the next question needs; the second token takes a decoding step.
_DRY_RUN = ["ask", "What is this about?", "--max-tokens", "2", "--quiet"]


def main(caller: socket.socket, argv: Sequence[str]) -> None:
    """Carry out an `ingest`, tell its exit code, and be the worker if there is none."""
    began, surroundings = time.perf_counter(), server.Surroundings.now()
    worker: server.Worker | None = None
    keep_alive, done = 0.0, threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the caller too, which terminates us
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_end_with, args=[caller, done], daemon=True).start()
    from actqkv_cli.invocation import Invocation, carry_out
    from actqkv_cli.runtime import Runtime

    def delegate(seconds: float) -> None:
        nonlocal keep_alive
        keep_alive = seconds

    def prepare(options: Sequence[str]) -> None:
        """Be the worker; have what is not loaded here, or in the worker that there is, loaded while nobody waits."""
        nonlocal worker
        nothing = subprocess.DEVNULL
        with contextlib.suppress(OSError):
            worker = server.listen(surroundings, keep_alive)
            if worker is None or not runtime.status()["model"]:
                subprocess.Popen(
                    [sys.executable, "-P", "-m", "actqkv_cli", *_DRY_RUN, *options],
                    stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True, env=surroundings.environ,
                )  # fmt: skip

    interrupts = terminal.Interrupts()
    with Runtime() as runtime:
        call = Invocation(
            argv,
            began,
            delegate=delegate,
            runtime=lambda: contextlib.nullcontext(runtime),
            check=interrupts.check,
            prepare=prepare,
        )
        code = carry_out(call, interrupts)
        done.set()
        if worker is None:
            sys.exit(code)
        try:
            _detach(endpoint.open_log(worker.path))
        finally:
            caller.send(bytes([code]))
        worker.serve(runtime)


def _end_with(caller: socket.socket, done: threading.Event) -> None:
    """What happens when the caller is killed."""
    caller.recv(1)
    if not done.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


def _detach(log: int) -> None:
    """Leave the user's terminal, streams and folder. log: a descriptor, which takes the place of stderr."""
    for descriptor in (0, 1):
        os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    os.dup2(log, 2)
    os.setsid()
    os.chdir("/")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
