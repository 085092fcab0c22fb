"""Reading a committed document: any blocks of any layer, and the small files that stay resident."""

from collections.abc import Collection, Sequence
from pathlib import Path

from torch import Tensor

from actqkv_cli.store.blocks import BlockFiles
from actqkv_cli.store.files import check_content, damaged, open_sized, read_exact
from actqkv_cli.store.manifest import TENSOR_FILES, TEXT, TOKENS, load_manifest
from actqkv_cli.store.tensors import load_tensors, names_in


class DocumentReader:
    """A committed document.

    Raises what `load_manifest` raises; StoreDamaged from every method that meets a file that is not as written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = load_manifest(folder)
        self._blocks = BlockFiles(folder, self.manifest.geometry, lambda: self.manifest.segments)
        self.bytes_read = self._blocks.bytes_read
        self._tokens: dict[str, Tensor] | None = None
        self._text: str | None = None

    def __enter__(self) -> "DocumentReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the segments. What was read stays usable."""
        self._blocks.close()

    def read_blocks(self, layer: int, ids: Sequence[int] | Tensor, pinned: bool = False) -> Tensor:
        """See `BlockFiles.read`."""
        return self._blocks.read(layer, ids, pinned)

    def tensors(self, names: Collection[str]) -> dict[str, Tensor]:
        """Those that the document has of some tensors that `store.tensors` lists. Each file that holds one of them is
        read and verified whole, and every time."""
        found: dict[str, Tensor] = {}
        for file, place in TENSOR_FILES.items():
            ours, entry = {*names_in(file)} & {*names}, getattr(self.manifest, place)
            if not ours or entry is None:  # a document of before there were methods
                continue
            found |= load_tensors(self.folder / file, entry, self.manifest, ours)
            if file == TOKENS:
                self.bytes_read.other += entry.bytes
            else:
                self.bytes_read.index += entry.bytes
        return found

    def tokens(self) -> dict[str, Tensor]:
        """ids, char_start, page: int32 (T,) each; loaded once."""
        if self._tokens is None:
            self._tokens = self.tensors(names_in(TOKENS))
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
