"""Folders that are there whole or not at all."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from actqkv_cli.errors import DiskFull, UsageError, out_of_space


def make_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`; when it is not there, what `make(scratch)` leaves in scratch / "model", whole or not at all.

    One process makes it while others wait. Raises DiskFull, and what `make` raises.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = _scratch(folder)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if folder.is_dir():
            return folder
        shutil.rmtree(scratch, ignore_errors=True)  # left by a process that was killed
        try:
            scratch.mkdir()
            make(scratch)
            _flush(scratch / "model")
            (scratch / "model").rename(folder)
        except OSError as error:
            if not out_of_space(error):
                raise
            raise DiskFull(f"no space left for the model in {folder.parent}") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def remove_once(folder: Path, paths: list[Path]) -> None:
    """Deletes what `make_once` made, and what else belongs to it. Raises UsageError while it is being made."""
    scratch = _scratch(folder)
    try:
        with FileLock(folder.parent / f".{folder.name}.lock", timeout=0):
            for path in paths:
                # Renamed first: a kill in the middle never leaves half a model under its name.
                shutil.rmtree(scratch, ignore_errors=True)
                path.rename(scratch)
            shutil.rmtree(scratch)
    except Timeout:
        raise UsageError(f"{folder.name} is just being fetched or converted", "wait for that, or end it") from None


def _scratch(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.part"


def _flush(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
