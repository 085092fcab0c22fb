"""Files as a store needs them: written whole or not at all, read exactly or not at all."""

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from actqkv_cli.errors import ActqkvError, DiskFull, StoreDamaged, out_of_space

DAMAGED_HINT = "remove the document and ingest it again"
DISK_FULL_HINT = "free some space, or raise the limit, and run the same command again: it resumes where it stopped"
TEMPORARY = ".tmp"
CHUNK = 1 << 22
# O_NONBLOCK: opening a FIFO that someone put in the folder must fail the regular-file check, not hang.
_READ_FLAGS = sum(getattr(os, name, 0) for name in ("O_RDONLY", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
_WRITE_FLAGS = sum(getattr(os, name, 0) for name in ("O_WRONLY", "O_CREAT", "O_TRUNC", "O_NOFOLLOW", "O_BINARY"))

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Written:
    """What `write_atomic` put on disk: size in bytes and xxh3_128 (hex) of the whole file."""

    bytes: int
    xxh3: str


def damaged(path: Path, what: str) -> StoreDamaged:
    """A StoreDamaged that names the document's folder and the file in it."""
    return StoreDamaged(f"{path.parent.name}/{path.name}: {what}", DAMAGED_HINT)


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turns an OSError of the body into DiskFull, or into an ActqkvError that names `path`."""
    try:
        yield
    except OSError as error:
        if out_of_space(error):
            raise DiskFull(f"no space left on the disk while writing {path}", DISK_FULL_HINT) from error
        raise ActqkvError(f"cannot write {path}: {error.strerror or error}") from error


def sync_folder(folder: Path) -> None:
    """Makes renames and removals in `folder` durable (a no-op on Windows, which has no such call)."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, chunks: Iterable[Buffer]) -> Written:
    """Writes `chunks` (bytes) under a temporary name, flushes, renames to `path`, flushes the folder.

    Whatever fails, `path` holds the old content or all of the new. Raises DiskFull, ActqkvError.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    digest, size = xxhash.xxh3_128(), 0
    with write_errors(path):
        try:
            fd = os.open(temporary, _WRITE_FLAGS, 0o644)
            try:
                for chunk in chunks:
                    view = memoryview(chunk)
                    digest.update(view)
                    size += len(view)
                    while len(view):
                        view = view[os.write(fd, view) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    return Written(size, digest.hexdigest())


def open_regular(path: Path) -> tuple[int, int]:
    """(descriptor, size in bytes) of a regular file. Raises StoreDamaged for anything else."""
    try:
        fd = os.open(path, _READ_FLAGS)
    except FileNotFoundError:
        raise damaged(path, "the file is missing") from None
    except OSError as error:
        raise damaged(path, f"cannot be opened ({error.strerror or error})") from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise damaged(path, "not a regular file")
    return fd, status.st_size


def _read_some_portably(fd: int, view: memoryview, offset: int) -> int:
    os.lseek(fd, offset, os.SEEK_SET)
    data = os.read(fd, len(view))
    view[: len(data)] = data
    return len(data)


def _read_some(fd: int, view: memoryview, offset: int) -> int:
    return os.preadv(fd, [view], offset)


if not hasattr(os, "preadv"):  # Windows
    _read_some = _read_some_portably


def read_exact(fd: int, view: memoryview, offset: int, path: Path) -> None:
    """Fills `view` (bytes) from `offset` of `fd`. Raises StoreDamaged, naming `path`, if the file ends before."""
    try:
        done = _read_some(fd, view, offset)
        while done < len(view):
            got = _read_some(fd, view[done:], offset + done)
            if got <= 0:
                raise damaged(path, "the file is shorter than it should be")
            done += got
    except OSError as error:
        raise damaged(path, f"cannot be read ({error.strerror or error})") from error


@contextlib.contextmanager
def open_sized(path: Path, size: int) -> Iterator[int]:
    """A descriptor of a regular file of `size` bytes, closed at the end. Raises StoreDamaged for any other size."""
    fd, actual = open_regular(path)
    try:
        if actual != size:
            raise damaged(path, f"{actual} bytes long instead of {size}")
        yield fd
    finally:
        os.close(fd)


def check_content(path: Path, content: Buffer, xxh3: str) -> None:
    """Raises StoreDamaged unless the content read from `path` has this xxh3_128."""
    if xxhash.xxh3_128_hexdigest(content) != xxh3:
        raise damaged(path, "the content does not match its checksum")


def check_file(path: Path, size: int, xxh3: str) -> None:
    """Raises StoreDamaged unless the file has this size in bytes and this xxh3_128. Needs 4 MiB whatever the size."""
    with open_sized(path, size) as fd:
        digest, buffer = xxhash.xxh3_128(), memoryview(bytearray(min(CHUNK, size)))
        for offset in range(0, size, CHUNK):
            part = buffer[: min(CHUNK, size - offset)]
            read_exact(fd, part, offset, path)
            digest.update(part)
    if digest.hexdigest() != xxh3:
        raise damaged(path, "the content does not match its checksum")


def tree_bytes(folder: Path) -> int:
    """Sum of the sizes in bytes of all files below `folder`; files that vanish meanwhile count as nothing."""
    total = 0
    for parent, _, names in os.walk(folder):  # which passes over what it cannot list
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(parent, name).lstat().st_size
    return total
