"""The folder of documents: what is there, which one is meant, and its removal."""

import contextlib
import hashlib
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from actqkv_cli.errors import ActqkvError, IdentityMismatch, NoSuchDocument, StoreDamaged, UsageError
from actqkv_cli.store.files import damaged, sync_folder, tree_bytes, write_errors
from actqkv_cli.store.jsonfile import canonical
from actqkv_cli.store.locks import read_lock, write_lock
from actqkv_cli.store.manifest import MANIFEST, PROGRESS, Manifest, Unfinished, load_manifest, load_unfinished

_TRASH = ".trash-"
_SCRATCH = "scratch"


@dataclass(frozen=True)
class Entry:
    """One document's folder. Exactly one of these is set: `manifest` (whole), `progress` (its ingest is unfinished),
    `failure` (damaged). `size` in bytes on disk; `modified` in seconds since the epoch."""

    id: str
    folder: Path
    manifest: Manifest | None
    progress: Unfinished | None
    failure: ActqkvError | None
    size: int
    modified: float

    @property
    def name(self) -> str:
        """The source file's name, or "" where the damage hides it."""
        record = self.manifest or self.progress
        return record.source.name if record else ""

    @property
    def state(self) -> str:
        """`complete`, `unfinished` or `damaged`."""
        return "complete" if self.manifest else "unfinished" if self.progress else "damaged"


def list_entries(home: Path) -> list[Entry]:
    """All documents, the latest first; damaged and unfinished ones too. Other files and folders are ignored."""
    try:
        folders = [path for path in home.iterdir() if not path.name.startswith(".") and path.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ActqkvError(f"cannot read the library {home}: {error.strerror or error}") from error
    entries = [entry for folder in folders if (entry := _entry(folder)) is not None]
    return sorted(entries, key=lambda entry: (-entry.modified, entry.id))


def find(home: Path, selector: str | None) -> Entry:
    """The committed document that `selector` means; None: the latest committed one.

    Tried in this order: the exact id, the exact name of the source, a prefix of id or name, a part of the name (the
    last two whatever the case). Raises UsageError (several fit), NoSuchDocument (none, or unfinished), StoreDamaged.
    """
    entries = list_entries(home)
    if selector is None:
        # A damaged latest one is an error: an answer from another document would be a wrong answer.
        complete = [entry for entry in entries if (entry.folder / MANIFEST).exists()]
        candidates = complete[:1] or entries[:1]
    else:
        candidates = _matches(entries, selector)
    if not candidates:
        what = "the library is empty" if not entries else f"no document matches {selector!r}"
        raise NoSuchDocument(what, _offer(entries))
    if len(candidates) > 1:
        ids = ", ".join(entry.id + _remark(entry) for entry in candidates[:10])
        raise UsageError(f"{len(candidates)} documents match {selector!r}: {ids}", "give one of these ids")
    return _usable(candidates[0])


def document_id(source_name: str, source_sha256: str, parts: Mapping[str, object]) -> str:
    """The folder's name: a slug of the source's name and 8 hex digits over everything that determines the bytes.

    `parts` must be made of JSON's types (model identity, geometry, reading …).
    """
    stem = unicodedata.normalize("NFKD", Path(source_name).stem).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:40].strip("-") or "document"
    content = canonical({"name": source_name, "sha256": source_sha256, "parts": dict(parts)})
    return f"{slug}-{hashlib.sha256(content).hexdigest()[:8]}"


def remove(home: Path, entry: Entry) -> None:
    """Deletes a document. Raises ActqkvError if it is in use, or cannot be deleted.

    The folder is renamed first, so that a kill in the middle never leaves half a document under its name.
    """
    if entry.folder != home / entry.id or entry.id.startswith("."):
        raise ValueError(f"{entry.folder} is not a document of {home}")
    trash = home / f"{_TRASH}{entry.id}"
    with write_lock(home, entry.id):
        try:
            _delete(trash)  # left by a removal that was killed
            with contextlib.suppress(FileNotFoundError):
                entry.folder.rename(trash)
                sync_folder(home)
            _delete(trash)
        except OSError as error:
            raise ActqkvError(f"cannot remove {entry.folder}: {error.strerror or error}") from error


@contextlib.contextmanager
def scratch(home: Path) -> Iterator[Path]:
    """An empty folder on the disk of a library or a cache, which is made if need be; gone at the end.

    The system's own temporary folder may be memory. Raises ActqkvError where no folder can be made, DiskFull.
    """
    sweep(home)
    with read_lock(home, _SCRATCH):
        with write_errors(home):
            home.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=f".{_SCRATCH}-", dir=home))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def sweep(home: Path) -> None:
    """Removes what killed runs left of `scratch`, unless one is in use: whose it is cannot be told."""
    if next(home.glob(f".{_SCRATCH}-*"), None) is None:
        return
    with contextlib.suppress(ActqkvError, OSError), write_lock(home, _SCRATCH):
        for folder in home.glob(f".{_SCRATCH}-*"):
            _delete(folder)


def _entry(folder: Path) -> Entry | None:
    """What a folder holds; None if it is no document's, or is gone by now."""
    record: Unfinished | None = None
    failure, place = None, folder
    try:
        if (folder / MANIFEST).exists():
            place = folder / MANIFEST
            record = load_manifest(folder)
        elif (folder / PROGRESS).exists():
            place = folder / PROGRESS
            record = load_unfinished(folder)
        elif any(folder.glob("kv-[0-9][0-9][0-9][0-9][0-9].safetensors")):
            raise damaged(folder / MANIFEST, "the file is missing")
        else:
            return None
        if record.id != folder.name:
            raise damaged(place, f"belongs to document {record.id}: the folder was renamed or copied")
    except ActqkvError as error:
        record, failure = None, error
    try:
        modified = place.stat().st_mtime
    except OSError:
        return None
    return Entry(
        id=folder.name,
        folder=folder,
        manifest=record if isinstance(record, Manifest) else None,
        progress=None if isinstance(record, Manifest) else record,
        failure=failure,
        size=tree_bytes(folder),
        modified=modified,
    )


def _matches(entries: list[Entry], selector: str) -> list[Entry]:
    """The entries that fit by the first rule that any of them fits."""
    wanted = selector.casefold()
    if not wanted:
        raise UsageError("the document's name is empty", "give its id or its name, or leave the option out")
    rules: list[Callable[[Entry], bool]] = [
        lambda entry: entry.id == selector,
        lambda entry: entry.name == selector,
        lambda entry: entry.id.casefold().startswith(wanted) or entry.name.casefold().startswith(wanted),
        lambda entry: wanted in entry.name.casefold(),
    ]
    for rule in rules:
        found = [entry for entry in entries if rule(entry)]
        if found:
            return found
    return []


def _usable(entry: Entry) -> Entry:
    if isinstance(entry.failure, IdentityMismatch):
        raise entry.failure
    if entry.failure is not None:
        raise StoreDamaged(entry.failure.message, f"`actqkv rm {entry.id}`, then ingest the document again")
    if entry.progress is not None:
        done, total = entry.progress.tokens_done, entry.progress.tokens
        raise NoSuchDocument(
            f"the ingest of {entry.name} ({entry.id}) is not finished: {done:,} of {total:,} tokens",
            "run the same ingest command again: it resumes where it stopped",
        )
    return entry


def _remark(entry: Entry) -> str:
    return "" if entry.manifest else f" ({entry.state})"


def _offer(entries: list[Entry]) -> str:
    if not entries:
        return "`actqkv ingest FILE` adds one"
    more = ", …" if len(entries) > 5 else ""
    return "there is: " + ", ".join(entry.id + _remark(entry) for entry in entries[:5]) + more


def _delete(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()  # never what it points to
    elif folder.exists():
        shutil.rmtree(folder)
