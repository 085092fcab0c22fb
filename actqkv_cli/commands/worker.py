"""actqkv worker: whether a worker runs in the background, and its end."""

import contextlib
import os
import signal
import sys
import time
from typing import Any

from actqkv_cli.errors import ActqkvError
from actqkv_cli.output import note, print_json
from actqkv_cli.worker import endpoint
from actqkv_cli.worker.protocol import Connection

_ANSWER_TIMEOUT, _STOP_TIMEOUT = 5.0, 3.0  # seconds


def status(as_json: bool) -> None:
    """What the worker says of itself. Raises what `running` raises."""
    found = running()
    if as_json:
        print_json({"running": found is not None, **(found or {})})
    elif found is None:
        sys.stdout.write("not running\n")
    else:
        for key, value in _lines(found).items():
            sys.stdout.write(f"{key + ':':<17}{value}\n")


def stop() -> None:
    """Raises ActqkvError if the worker does not end."""
    connection = endpoint.connect()
    if connection is None:
        note("no worker is running")
        return
    with contextlib.closing(connection):
        pid = connection.peer()[0]
        connection.set_timeouts(receive=_STOP_TIMEOUT)
        connection.send(shutdown=True)
        if not _hangs_up(connection):
            if pid is None:
                raise ActqkvError("the worker does not answer", "end its process yourself")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # it only reads documents, so there is nothing to lose
    note("the worker is stopped")


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


def _lines(found: dict[str, Any]) -> dict[str, str]:
    remaining = found["remaining_seconds"]
    chats = f", {found['conversations']} conversations" if found["conversations"] else ""
    ends = "busy" if found["busy"] else "stays" if remaining is None else f"ends in {remaining:,.0f} s if not asked"
    return {
        "process": f"{found['pid']} (actqkv {found['version']}), up {found['uptime_seconds']:,.0f} s",
        "state": ends + chats,
        "served": f"{found['served']} requests",
        "memory": f"{found['memory_bytes'] / 1e6:,.0f} MB",
        "model": f"{found['model']} on {found['device']}" if found["model"] else "none yet",
        "documents": ", ".join(found["documents"]) or "none yet",
    }
