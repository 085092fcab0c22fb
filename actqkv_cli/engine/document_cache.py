"""Documents that stay open from one question to the next: those that were asked last, as many as fit in memory."""

import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from actqkv_cli.engine.context import Context, context_of
from actqkv_cli.engine.document import OpenDocument
from actqkv_cli.model.causal_lm import CausalLM
from actqkv_cli.store.manifest import MANIFEST
from actqkv_cli.store.reader import DocumentReader

_Stamp = tuple[int, int, int]


@dataclass
class _Cached:
    """A document as it was at `stamp`. pins: how many use it now."""

    stamp: _Stamp
    document: OpenDocument
    pins: int = 0


class DocumentCache:
    """Opens documents for a model, and keeps them within `limit` bytes, the least recently used leave first.

    A document in use is pinned: it is neither evicted nor closed, so what is in use at once may exceed the limit, and
    what was used last stays until something else is asked for.
    """

    def __init__(self, model: CausalLM, limit: int) -> None:
        self._model, self._limit = model, limit
        self._cached: OrderedDict[Path, _Cached] = OrderedDict()
        self._context: Context | None = None  # the last of several documents

    @property
    def folders(self) -> list[Path]:
        """Of the documents that are kept, the least recently used first."""
        return list(self._cached)

    @property
    def bytes_held(self) -> int:
        """Memory that all documents take, and the row of blocks that some of them share."""
        documents = sum(cached.document.bytes_held for cached in self._cached.values())
        return documents + (self._context.bytes_held if self._context else 0)

    @contextlib.contextmanager
    def pinned(self, folders: Iterable[Path]) -> Iterator[list[OpenDocument]]:
        """The documents in these folders, open for as long as this is. Raises what opening raises."""
        with contextlib.ExitStack() as pins:
            documents = [pins.enter_context(self._pinned(folder)) for folder in folders]
            self._evict()
            try:
                yield documents
            finally:
                self._evict()  # a question may have grown them

    def context_of(self, documents: Sequence[OpenDocument]) -> Context:
        """What questions to pinned documents are put to. Raises what `context_of` raises."""
        if len(documents) == 1:
            return context_of(documents, self._model)
        if self._context is None or self._context.documents != tuple(documents):
            self._context = None  # before another is made
            self._context = context_of(documents, self._model)
        return self._context

    def prune(self) -> None:
        """Let go of documents that were removed or ingested anew."""
        for folder, cached in list(self._cached.items()):
            if _stamp(folder) != cached.stamp:
                self._let_go(folder)

    def close(self) -> None:
        """Close all documents; one that is pinned, as soon as it is not."""
        for folder in self.folders:
            self._let_go(folder)

    @contextlib.contextmanager
    def _pinned(self, folder: Path) -> Iterator[OpenDocument]:
        cached = self._open(folder)
        cached.pins += 1
        try:
            yield cached.document
        finally:
            cached.pins -= 1
            if self._cached.get(folder) is cached:
                self._cached.move_to_end(folder)
            elif not cached.pins:  # it was let go of meanwhile
                cached.document.close()

    def _open(self, folder: Path) -> _Cached:
        stamp, cached = _stamp(folder), self._cached.get(folder)
        if cached and cached.stamp == stamp:
            cached.document.reader.bytes_read.reset()
        else:
            if cached:
                self._let_go(folder)
            cached = _Cached(stamp, OpenDocument(DocumentReader(folder), self._model.device))
            self._cached[folder] = cached
        return cached

    def _evict(self) -> None:
        idle = [folder for folder, cached in self._cached.items() if not cached.pins]
        for folder in idle:
            self._cached[folder].document.close()  # for a process may open few files; what is read from it stays
        for folder in idle:
            if self.bytes_held <= self._limit:
                return
            self._let_go(folder)

    def _let_go(self, folder: Path) -> None:
        cached = self._cached.pop(folder)
        if self._context and cached.document in self._context.documents:
            self._context = None
        if not cached.pins:
            cached.document.close()


def _stamp(folder: Path) -> _Stamp:
    """Changes whenever a document is committed anew."""
    try:
        found = (folder / MANIFEST).stat()
    except OSError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_ino, found.st_size
