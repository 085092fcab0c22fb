"""Who may read or change a document now: locks between processes, which vanish with their holder."""

import contextlib
import hashlib
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from filelock import ReadWriteLock, Timeout

from actqkv_cli.errors import ActqkvError
from actqkv_cli.store.manifest import ID_PATTERN

LOCKS = ".locks"
# Not zero, because even the taking of a free lock has a moment in which it looks taken to others.
_READER_WAIT, _WRITER_WAIT = 0.5, 0.2  # seconds


@contextlib.contextmanager
def read_lock(home: Path, document: str) -> Iterator[None]:
    """Shared lock on a document. Raises ActqkvError within a second if it is being ingested or removed.

    A library that this user may not write to is read without a lock: every byte read is verified anyway.
    """
    path = _path(home, document)
    if not _may_write(path):
        yield
        return
    with _held(path, f"document {document} is being ingested or removed by another process", exclusive=False):
        yield


@contextlib.contextmanager
def write_lock(home: Path, document: str) -> Iterator[None]:
    """Exclusive lock on a document. Raises ActqkvError at once if another process reads or changes it."""
    path = _path(home, document)
    with _held(path, f"document {document} is being read, ingested or removed by another process", exclusive=True):
        yield


@contextlib.contextmanager
def _held(path: Path, busy: str, exclusive: bool) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # One instance for each holder: two of one process exclude each other like two processes.
            lock = ReadWriteLock(path, is_singleton=False)
            stack.callback(lock.close)
            held = lock.write_lock(_WRITER_WAIT) if exclusive else lock.read_lock(_READER_WAIT)
            stack.enter_context(held)
        except Timeout:
            raise ActqkvError(busy, "try again when it is done") from None
        except (OSError, ValueError, sqlite3.Error) as error:
            raise ActqkvError(
                f"cannot lock {path}: {error}", "the library must be on a disk that supports locks"
            ) from error
        yield


def _path(home: Path, document: str) -> Path:
    # A folder that a user renamed may hold characters that no file name of ours should.
    fit = re.fullmatch(ID_PATTERN, document)
    name = document if fit else "other-" + hashlib.sha256(document.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return home / LOCKS / f"{name}.lock"


def _may_write(path: Path) -> bool:
    for place in (path, *path.parents):
        if place.exists():
            return os.access(place, os.R_OK | os.W_OK)
    return False
