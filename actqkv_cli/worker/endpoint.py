"""Where the worker listens: a socket in the user's runtime folder that nobody else can reach."""

import os
import socket
import stat
import warnings
from pathlib import Path

import platformdirs

from actqkv_cli.worker.protocol import Connection

_MAX_PATH_BYTES = 100  # the systems' limits are 104 and 108 with the closing zero


def socket_path() -> Path | None:
    """The worker's socket, there or not; None where this platform has no way to it."""
    if not (hasattr(socket, "AF_UNIX") and hasattr(os, "getuid")):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no XDG_RUNTIME_DIR: a folder in /tmp does as well
            path = platformdirs.user_runtime_path("actqkv") / "worker.sock"
    except OSError:
        return None
    return path if len(os.fsencode(path)) <= _MAX_PATH_BYTES else None


def make_folder(path: Path) -> None:
    """Make the socket's folder if it is not there. Raises OSError that says why nobody may listen there."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if problem := unsafe(path.parent):
        raise OSError(problem)


def log_path(path: Path) -> Path:
    """What a worker has to say to nobody in particular: tracebacks, and why it ended."""
    return path.with_suffix(".log")


def open_log(path: Path) -> int:
    """A descriptor to append to the log. Raises OSError."""
    return os.open(log_path(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)


def unsafe(folder: Path) -> str:
    """Why somebody else could be behind a socket in this folder; "" if nobody can, or there is none yet."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"cannot look at {folder}: {error.strerror}"
    if not stat.S_ISDIR(found.st_mode):
        return f"{folder} is not a folder"
    if found.st_uid != os.getuid():
        return f"{folder} belongs to another user"
    if stat.S_IMODE(found.st_mode) & 0o077:
        return f"{folder} is open to other users (chmod 700 closes it)"
    return ""


def connect() -> Connection | None:
    """A connection to the worker; None if none listens, or it cannot be trusted."""
    path = socket_path()
    if path is None or unsafe(path.parent):
        return None
    sock = socket.socket(socket.AF_UNIX)
    connection = Connection(sock)
    try:
        sock.connect(str(path))
        if connection.is_of_this_user():
            return connection
    except OSError:
        pass
    connection.close()
    return None
