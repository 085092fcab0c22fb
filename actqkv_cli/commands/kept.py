"""What a process keeps loaded from one question to the next: one model, and the documents that were asked last.

A command that asks once fills it and ends. The worker, a chat and the server find here what they loaded before.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actqkv_cli.commands.models import load, locate
from actqkv_cli.config import Settings
from actqkv_cli.errors import UsageError
from actqkv_cli.store.library import Entry
from actqkv_cli.store.locks import reading
from actqkv_cli.store.manifest import MANIFEST, Manifest, check_identity, decisive

if TYPE_CHECKING:
    from actqkv_cli.engine.context import Context
    from actqkv_cli.engine.document import OpenDocument
    from actqkv_cli.model.load import LoadedModel

_MOST = 8  # documents kept open, unless more are asked at once


class OtherWorkerNeeded(UsageError):
    """This process keeps another model or library; a new one has to take its place. Nothing was written yet."""


@dataclass
class _Kept:
    home: Path
    loaded: "LoadedModel"
    documents: "OrderedDict[Path, tuple[_Stamp, OpenDocument]]" = field(default_factory=OrderedDict)
    context: "Context | None" = None  # the last of several documents


_Stamp = tuple[int, int, int]
_kept: _Kept | None = None


@contextlib.contextmanager
def model_of(entries: Sequence[Entry], settings: Settings, quiet: bool) -> "Iterator[LoadedModel]":
    """The model of some documents, which no one may change meanwhile.

    Raises OtherWorkerNeeded, IdentityMismatch if one was read by another model, and what locating and loading raise.
    """
    with contextlib.ExitStack() as locks:
        for entry in entries:
            locks.enter_context(reading(settings.home, entry.id))
        yield _with_model(entries, settings, quiet).loaded


def open_documents(entries: Sequence[Entry]) -> "list[OpenDocument]":
    """The documents themselves, within `model_of`. Raises what opening raises."""
    assert _kept is not None
    found = [_document(_kept, entry) for entry in entries]
    while len(_kept.documents) > max(_MOST, len(entries)):
        _kept.documents.popitem(last=False)[1][1].reader.close()
    return found


def context_of(documents: "Sequence[OpenDocument]") -> "Context":
    """What questions to documents of `open_documents` are put to."""
    from actqkv_cli.engine import context

    assert _kept is not None
    model = _kept.loaded.model
    if len(documents) == 1:
        return context.context_of(documents, model)
    if _kept.context is None or _kept.context.documents != tuple(documents):
        _kept.context = context.context_of(documents, model)
    return _kept.context


def prune() -> None:
    """Let go of documents that were removed or ingested anew."""
    for folder, (stamp, document) in list(_kept.documents.items()) if _kept else []:
        if _stamp(folder) != stamp:
            document.reader.close()
            _forget(folder)


def status() -> dict[str, Any]:
    """The model and the documents that are kept, for people."""
    if _kept is None:
        return {"model": None, "documents": []}
    return {
        "home": str(_kept.home),
        "model": _kept.loaded.files.name,
        "device": str(_kept.loaded.device),
        "documents": [folder.name for folder in _kept.documents],
    }


def _with_model(entries: Sequence[Entry], settings: Settings, quiet: bool) -> _Kept:
    global _kept
    manifest = _manifest(entries[0])
    spec = manifest.model["name"] if settings.model == "default" else settings.model
    files = locate(spec, settings, quiet)
    ours = {**files.identity, "dtype": manifest.geometry.dtype}
    for entry in entries:
        check_identity(decisive(_manifest(entry).model), decisive(ours))
    if _kept is None:
        _kept = _Kept(settings.home, load(files, manifest.geometry.dtype, settings))
    elif _kept.home != settings.home:
        raise OtherWorkerNeeded(f"the library {_kept.home} is open here, and not {settings.home}")
    from actqkv_cli.model.load import choose_device

    if (decisive(_kept.loaded.files.identity), _kept.loaded.dtype, _kept.loaded.device) != (
        decisive(files.identity),
        manifest.geometry.dtype,
        choose_device(settings.device),
    ):
        raise OtherWorkerNeeded(f"another model is loaded here: {_kept.loaded.files.name} on {_kept.loaded.device}")
    return _kept


def _document(kept: _Kept, entry: Entry) -> "OpenDocument":
    from actqkv_cli.engine.document import OpenDocument
    from actqkv_cli.store.reader import DocumentReader

    stamp = _stamp(entry.folder)
    known = kept.documents.get(entry.folder)
    if known is None or known[0] != stamp:
        if known:
            known[1].reader.close()
        _forget(entry.folder)
        kept.documents[entry.folder] = stamp, OpenDocument(DocumentReader(entry.folder), kept.loaded.device)
    else:
        known[1].reader.bytes_read.reset()
    kept.documents.move_to_end(entry.folder)
    return kept.documents[entry.folder][1]


def _forget(folder: Path) -> None:
    assert _kept is not None
    _kept.documents.pop(folder, None)
    _kept.context = None


def _stamp(folder: Path) -> _Stamp:
    """Changes whenever a document is committed anew."""
    try:
        found = (folder / MANIFEST).stat()
    except OSError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_ino, found.st_size


def _manifest(entry: Entry) -> Manifest:
    assert entry.manifest is not None  # `find` gives committed documents only
    return entry.manifest
