"""A sandbox with a resident worker, and how to talk to that."""

import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sandbox import Sandbox

from actqkv_cli.worker.protocol import Connection


def endpoint(box: Sandbox) -> Path:
    return Path(box.env["XDG_RUNTIME_DIR"]) / "actqkv" / "worker.sock"


def connect(box: Sandbox) -> Connection | None:
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(str(endpoint(box)))
    except OSError:
        sock.close()
        return None
    return Connection(sock)


def status(box: Sandbox) -> dict[str, Any] | None:
    """What the worker says of itself; None if there is none."""
    connection = connect(box)
    if connection is None:
        return None
    connection.send(status=True)
    frame = connection.receive()
    connection.close()
    return frame["status"] if frame else None


def with_worker(box: Sandbox) -> Iterator[Sandbox]:
    """A runtime folder of its own, of a short name; whatever worker it has ends with the test."""
    folder = Path(tempfile.mkdtemp(prefix="aq", dir="/tmp"))
    box = box.with_env(XDG_RUNTIME_DIR=str(folder), ACTQKV_KEEP_ALIVE="60s")
    try:
        yield box
    finally:
        if found := status(box):
            os.kill(found["pid"], signal.SIGKILL)
        shutil.rmtree(folder)


def until(what: Any, seconds: float = 10) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
