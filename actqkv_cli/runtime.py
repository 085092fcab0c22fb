"""What a process keeps loaded from one question to the next: one model, and the documents that were asked last."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actqkv_cli.config import Settings
from actqkv_cli.errors import UsageError
from actqkv_cli.loading import fetch_files
from actqkv_cli.store.library import Entry
from actqkv_cli.store.locks import read_lock
from actqkv_cli.store.manifest import Manifest, check_identity, decisive

if TYPE_CHECKING:
    from actqkv_cli.engine.document_cache import DocumentCache
    from actqkv_cli.model.files import ModelFiles
    from actqkv_cli.model.load import LoadedModel


class OtherWorkerNeeded(UsageError):
    """This process keeps another model or library; a new one has to take its place. Nothing was written yet."""


@dataclass(frozen=True)
class _Loaded:
    """A model, and the cache of a library's documents that it has read."""

    home: Path
    model: "LoadedModel"
    documents: "DocumentCache"


class Runtime:
    """Loads at the first question what later ones find, and keeps it until it is closed. For one thread.

    A command that asks once has one of its own. The worker and all its chats share one, and the server has one.
    """

    def __init__(self) -> None:
        self._loaded: _Loaded | None = None

    def __enter__(self) -> "Runtime":
        return self

    def __exit__(self, *_: object) -> None:
        self._let_go()

    @contextlib.contextmanager
    def loaded(
        self, entries: Sequence[Entry], settings: Settings, quiet: bool
    ) -> "Iterator[tuple[LoadedModel, DocumentCache]]":
        """The model of some documents, which no one may change meanwhile, and the cache that opens them.

        Raises OtherWorkerNeeded, IdentityMismatch if one was read by another model, and what locating and loading
        raise.
        """
        with contextlib.ExitStack() as locks:
            for entry in entries:
                locks.enter_context(read_lock(settings.home, entry.id))
            manifests = [entry.manifest for entry in entries if entry.manifest]  # `find` gives committed ones only
            loaded = self._loaded_for(manifests, settings, quiet)
            yield loaded.model, loaded.documents

    def reading_model(self, files: "ModelFiles", settings: Settings) -> "LoadedModel":
        """The model that documents are to be read with; another one, with its documents, makes way for it. Raises what
        loading raises."""
        if self._loaded is None or self._loaded.model.files != files:
            self._let_go()
            self._loaded = _load(files, settings.dtype, settings)
        return self._loaded.model

    def prune(self) -> None:
        """Let go of documents that were removed or ingested anew."""
        if self._loaded:
            self._loaded.documents.prune()

    def status(self) -> dict[str, Any]:
        """The model and the documents that are kept, for people."""
        if self._loaded is None:
            return {"model": None, "documents": []}
        return {
            "home": str(self._loaded.home),
            "model": self._loaded.model.files.name,
            "device": str(self._loaded.model.device),
            "documents": [folder.name for folder in self._loaded.documents.folders],
        }

    def _loaded_for(self, manifests: Sequence[Manifest], settings: Settings, quiet: bool) -> _Loaded:
        spec = manifests[0].model["name"] if settings.model == "default" else settings.model
        files, dtype = fetch_files(spec, settings, quiet), manifests[0].geometry.dtype
        ours = {**files.identity, "dtype": dtype}
        for manifest in manifests:
            check_identity(decisive(manifest.model), decisive(ours))
        if self._loaded is None:
            self._loaded = _load(files, dtype, settings)
        else:
            _check_same(self._loaded, files, dtype, settings)
        return self._loaded

    def _let_go(self) -> None:
        if self._loaded:
            self._loaded.documents.close()
        self._loaded = None


def _load(files: "ModelFiles", dtype: str, settings: Settings) -> _Loaded:
    """Documents may take half of the memory that the model leaves free; questions need some, and other programs."""
    from actqkv_cli.engine.document_cache import DocumentCache
    from actqkv_cli.model.choose import free_memory
    from actqkv_cli.model.load import load_model

    model = load_model(files, dtype=dtype, device=settings.device)
    return _Loaded(settings.home, model, DocumentCache(model.model, free_memory(model.device) // 2))


def _check_same(loaded: _Loaded, files: "ModelFiles", dtype: str, settings: Settings) -> None:
    """Raises OtherWorkerNeeded unless this is what is loaded."""
    from actqkv_cli.model.load import choose_device

    if loaded.home != settings.home:
        raise OtherWorkerNeeded(f"the library {loaded.home} is open here, and not {settings.home}")
    model = loaded.model
    if (decisive(model.files.identity), model.dtype, model.device) != (
        decisive(files.identity),
        dtype,
        choose_device(settings.device),
    ):
        raise OtherWorkerNeeded(f"another model is loaded here: {model.files.name} on {model.device}")
