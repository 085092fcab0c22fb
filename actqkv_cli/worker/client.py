"""The thin client: hands a whole command to the worker and passes on what comes back.

Nothing slow may be imported here: this is what a user waits for before a warm answer begins.
"""

import contextlib
import io
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actqkv_cli import terminal
from actqkv_cli.errors import ActqkvError
from actqkv_cli.failures import fail, foreseen, interrupted
from actqkv_cli.worker import endpoint
from actqkv_cli.worker.protocol import Connection, fingerprint

_TICK = 0.2  # seconds between looks at whether Ctrl-C has waited for long enough
_AFTER_CTRL_C = 2.0  # seconds in which the worker may say its last words
_START = 30.0  # seconds for a new worker to listen
_ATTEMPTS = 3
_ANSWER_TIMEOUT, _STOP_TIMEOUT = 5.0, 3.0  # seconds
_STDIN = {"-", "-f-", "--file=-"}  # words that ask for it: without one it may be a terminal on which nobody types


def run(argv: Sequence[str]) -> int | None:
    """The exit code of a command as the running worker has carried it out.

    None if none runs, or it cannot carry out this one: nothing has been written then.
    """
    connection = endpoint.connect()
    return None if connection is None else _forward(argv, connection)


def hand_over(argv: Sequence[str]) -> int | None:
    """The same through a worker that is started if none runs. None, with a note if it failed: do it here."""
    for _ in range(_ATTEMPTS):  # a worker may be replaced, or its time be up, just as we come
        connection = endpoint.connect() or _start()
        if connection is None:
            return None
        code = _forward(argv, connection)
        if code is not None:
            return code
    return None


def read(argv: Sequence[str]) -> int | None:
    """The exit code of an `ingest`, carried out by a process that then is the worker. None where there can be none."""
    if endpoint.socket_path() is None:
        return None
    import subprocess

    ours, its = socket.socketpair()

    def stop(*_: Any) -> None:
        with contextlib.suppress(OSError):
            ours.send(b"\0")

    with ours, terminal.on_interrupt(stop):
        with its:
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # it listens to us alone, from the start
            try:
                # -P: the current folder is no place to import from. Streams, folder and terminal are the user's own; no
                # file of ours may take the place of one that is closed.
                nothing = subprocess.DEVNULL
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "actqkv_cli.worker.reader", str(its.fileno()), *argv],
                    pass_fds=[its.fileno()], stdin=None if sys.stdin else nothing,
                    stdout=None if sys.stdout else nothing, stderr=None if sys.stderr else nothing,
                )  # fmt: skip
            except OSError as error:
                sys.stderr.write(f"note: reading without a worker, which could not be started: {error}\n")
                return None
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        told = ours.recv(1)
        code = told[0] if told else process.wait()
    return code if code >= 0 else _killed(signal.Signals(-code), argv)


def running() -> dict[str, Any] | None:
    """What the worker says of itself; None if none runs. Raises ActqkvError if it does not answer."""
    connection = endpoint.connect()
    if connection is None:
        return None
    with contextlib.closing(connection):
        connection.set_timeouts(receive=_ANSWER_TIMEOUT)
        connection.send(status=True)
        try:
            frame = connection.receive()
        except TimeoutError:
            raise ActqkvError("the worker does not answer", "`actqkv worker stop` ends it") from None
    return frame["status"] if frame else None


def stop() -> bool:
    """End the worker; False if none runs. Raises ActqkvError if it does not end."""
    connection = endpoint.connect()
    if connection is None:
        return False
    with contextlib.closing(connection):
        pid = connection.peer()[0]
        connection.set_timeouts(receive=_STOP_TIMEOUT)
        connection.send(shutdown=True)
        if not _hangs_up(connection):
            if pid is None:
                raise ActqkvError("the worker does not answer", "end its process yourself")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # it only reads documents, so there is nothing to lose
    return True


def _forward(argv: Sequence[str], connection: Connection) -> int | None:
    try:
        with contextlib.closing(connection):
            connection.set_timeouts(receive=_TICK)
            if not connection.send(run=_command(argv), fingerprint=fingerprint()):
                return None
            return _follow(argv, connection)
    except KeyboardInterrupt:
        return interrupted(argv)
    except BrokenPipeError:  # the reader of our output has gone: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # of our own output: the connection's are told, not raised
        return fail(foreseen(error), argv)


def _command(argv: Sequence[str]) -> dict[str, Any]:
    """All that a command can see of the process that it was called in."""
    environ = dict(os.environ)
    if size := _terminal_size():
        environ.setdefault("COLUMNS", str(size.columns))
        environ.setdefault("LINES", str(size.lines))
    return {
        "argv": list(argv),
        "cwd": _folder(),
        "environ": environ,
        "terminal": {"in": sys.stdin.isatty(), "out": sys.stdout.isatty(), "err": sys.stderr.isatty()},
        "stdin": _read_stdin() if _STDIN & set(argv) else "",
    }


def _folder() -> str:
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return "/"


def _terminal_size() -> os.terminal_size | None:
    for descriptor in (2, 1, 0):
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(descriptor)
            if size.columns and size.lines:  # a terminal may not know: then everyone has a default of their own
                return size
    return None


def _read_stdin() -> str:
    """All of it, undecodable bytes as lone surrogates. It can be read again afterwards, if no worker takes it."""
    data = sys.stdin.buffer.read()
    sys.stdin = io.TextIOWrapper(io.BytesIO(data), sys.stdin.encoding, sys.stdin.errors)
    return data.decode("utf-8", "surrogateescape")


def _follow(argv: Sequence[str], connection: Connection) -> int | None:
    """Pass on what the worker writes, and lines to it that it asks for, until the command ends."""
    started = in_conversation = False
    stop_at = float("inf")

    def stop(*_: Any) -> None:
        nonlocal stop_at
        if not started or stop_at < float("inf"):
            raise KeyboardInterrupt
        stop_at = time.monotonic() + _AFTER_CTRL_C
        connection.send(stop=True)

    with terminal.on_interrupt(stop):
        while True:
            try:
                frame = connection.receive()
            except TimeoutError:
                if time.monotonic() > stop_at and not in_conversation:
                    raise KeyboardInterrupt from None
                continue
            if frame is None:
                return _died(argv) if started else None
            if "replaced" in frame or "declined" in frame:
                return None
            started = True
            for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
                if name in frame:
                    stream.write(frame[name])
                    stream.flush()
            if "exit" in frame:
                return int(frame["exit"])
            if "prompt" in frame:
                in_conversation, stop_at = True, float("inf")
                with terminal.on_interrupt(signal.default_int_handler):
                    connection.send(line=terminal.read_line(frame["prompt"]))


def _died(argv: Sequence[str]) -> int:
    path = endpoint.socket_path()
    log = f"{endpoint.log_path(path)} may tell why; " if path else ""
    message = "the worker ended while it answered: it was killed, or it crashed"
    return fail(ActqkvError(message, f"{log}the next command starts a new one"), argv)


def _killed(by: signal.Signals, argv: Sequence[str]) -> int:
    reason = ", perhaps because memory ran out" if by == signal.SIGKILL else ""
    message = f"the process that read was ended by {by.name}{reason}"
    return fail(ActqkvError(message, "the same command goes on where it stopped"), argv)


def _start() -> Connection | None:
    """A connection to a new worker, or to one that another client has just started. None, with a note if it failed."""
    path = endpoint.socket_path()
    if path is None:
        return None
    try:
        endpoint.make_folder(path)
        return _spawn(path)
    except OSError as error:
        sys.stderr.write(f"note: answering without a worker, which could not be started: {error}\n")
        return None


def _spawn(path: Path) -> Connection:
    """Raises OSError that says why there is none."""
    import subprocess

    descriptor = endpoint.open_log(path)
    try:
        # -P: the current folder is no place to import from. A session of its own: no Ctrl-C, no hang-up reaches it.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "actqkv_cli.worker"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=descriptor, start_new_session=True, cwd="/",
        )  # fmt: skip
    finally:
        os.close(descriptor)
    deadline = time.monotonic() + _START
    while time.monotonic() < deadline:
        ended = process.poll()  # before connect(): one that has come second leaves at once, the first listens by then
        if connection := endpoint.connect():
            return connection
        if ended:
            raise OSError(f"it ended with code {ended}, see {endpoint.log_path(path)}")
        time.sleep(0.01)
    raise OSError(f"it did not listen within {_START:.0f} s, see {endpoint.log_path(path)}")


def _hangs_up(connection: Connection) -> bool:
    """Whether the worker closes the connection in time, which it does by ending."""
    deadline = time.monotonic() + _STOP_TIMEOUT
    try:
        while time.monotonic() < deadline:
            if connection.receive() is None:
                return True
    except TimeoutError:
        pass
    return False
