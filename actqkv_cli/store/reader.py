"""Reading a committed document: any blocks of any layer, and the small files that stay resident."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from torch import Tensor

from actqkv_cli.store.blocks import BlockFiles
from actqkv_cli.store.files import check_content, damaged, open_sized, read_exact
from actqkv_cli.store.manifest import INDEX, METHODS, TEXT, TOKENS, load_manifest
from actqkv_cli.store.tensors import check_index, check_methods, check_tokens, load_tensors


class DocumentReader:
    """A committed document.

    Raises what `load_manifest` raises; StoreDamaged from every method that meets a file that is not as written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = load_manifest(folder)
        self._blocks = BlockFiles(folder, self.manifest.geometry, lambda: self.manifest.segments)
        self.bytes_read = self._blocks.bytes_read
        self._index: dict[str, Tensor] | None = None
        self._methods: dict[str, Tensor] | None = None
        self._tokens: dict[str, Tensor] | None = None
        self._text: str | None = None

    def __enter__(self) -> "DocumentReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the segments. What was read stays usable."""
        self._blocks.close()

    def read_blocks(self, layer: int, ids: Sequence[int] | Tensor, pinned: bool = False) -> Tensor:
        """See `BlockFiles.read`."""
        return self._blocks.read(layer, ids, pinned)

    def index(self) -> dict[str, Tensor]:
        """representatives (L, N, R, Hkv, d) and whatever else was committed; loaded and verified once."""
        if self._index is None:
            found = load_tensors(self.folder / INDEX, self.manifest.index)
            self._check(INDEX, found)
            self._index = found
            self.bytes_read.index += self.manifest.index.bytes
        return self._index

    def methods(self) -> dict[str, Tensor]:
        """What only some retrieval methods need, empty in documents of before it was kept; loaded and verified once."""
        if self._methods is None:
            entry = self.manifest.methods
            found = {} if entry is None else load_tensors(self.folder / METHODS, entry)
            self._check(METHODS, found)
            self._methods = found
            self.bytes_read.index += 0 if entry is None else entry.bytes
        return self._methods

    def tokens(self) -> dict[str, Tensor]:
        """ids, char_start, page: int32 (T,) each; loaded and verified once."""
        if self._tokens is None:
            tensors = load_tensors(self.folder / TOKENS, self.manifest.token_file)
            self._check(TOKENS, tensors)
            self._tokens = tensors
            self.bytes_read.other += self.manifest.token_file.bytes
        return self._tokens

    def text(self) -> str:
        """The extracted text, source.characters long; loaded and verified once."""
        if self._text is None:
            path, entry = self.folder / TEXT, self.manifest.text
            with open_sized(path, entry.bytes) as fd:
                data = bytearray(entry.bytes)
                read_exact(fd, memoryview(data), 0, path)
            check_content(path, data, entry.xxh3)
            try:
                text = data.decode()
            except UnicodeDecodeError as error:
                raise damaged(path, "not UTF-8") from error
            if len(text) != self.manifest.source.characters:
                raise damaged(path, f"{len(text)} characters instead of {self.manifest.source.characters}")
            self._text = text
            self.bytes_read.other += entry.bytes
        return self._text

    def _check(self, name: str, tensors: dict[str, Tensor]) -> None:
        checks = {TOKENS: check_tokens, INDEX: check_index, METHODS: check_methods}
        try:
            checks[name](tensors, self.manifest)
        except ValueError as error:
            raise damaged(self.folder / name, str(error)) from error
