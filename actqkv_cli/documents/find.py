"""Which files a command's arguments mean."""

import os
from collections.abc import Sequence
from pathlib import Path

from actqkv_cli.documents.clean import one_line
from actqkv_cli.errors import DocumentError

SUFFIXES = (".txt", ".md", ".markdown", ".text", ".pdf")


def find_documents(paths: Sequence[Path]) -> list[Path]:
    """The files to read: those named, and below each folder all with one of SUFFIXES, sorted; each once.

    Hidden files, hidden folders and links to folders are passed over. DocumentError where a path does
    not exist, cannot be looked into, or is a folder without documents.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        try:
            files = _below(path) if path.is_dir() else [path]
            missing = not path.exists()
        except OSError as error:
            raise unreadable(one_line(str(error.filename or path)), error) from error
        if missing:
            raise DocumentError(f"{one_line(str(path))}: no such file", "check the path")
        if not files:
            hint = f"looked for {' '.join(SUFFIXES)}; a file with another ending can be named itself"
            raise DocumentError(f"{one_line(str(path))}: no documents in this folder", hint)
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def unreadable(label: str, error: OSError) -> DocumentError:
    """The error for a file or folder that the system refuses to open or read."""
    reason = error.strerror or type(error).__name__
    return DocumentError(f"{label}: cannot be read ({reason})", "check that it is a file that you may read")


def _below(folder: Path) -> list[Path]:
    """The documents below, sorted. OSError where a folder cannot be listed."""

    def refuse(error: OSError) -> None:
        raise error

    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(file for file in found if file.suffix.lower() in SUFFIXES and file.is_file())
