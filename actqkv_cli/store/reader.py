"""Reading a committed document: any blocks of any layer, and the small files that stay resident."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from torch import Tensor

from actqkv_cli.store.files import check_content, damaged, open_sized, read_exact
from actqkv_cli.store.manifest import INDEX, TEXT, TOKENS, load_manifest
from actqkv_cli.store.segment import SegmentFile, block_damaged, block_shape, cache_dtype, raw
from actqkv_cli.store.tensors import check_index, check_tokens, load_tensors

_ANNOUNCE = hasattr(os, "posix_fadvise")  # Linux
_MAX_OPEN = 128  # segments open at once: macOS allows a process 256 files
_BATCH = 64  # runs of blocks read at once, each from one segment


@dataclass
class Traffic:
    """Bytes read so far: cache blocks, the index, everything else (tokens, text, headers, checksum
    tables)."""

    blocks: int = 0
    index: int = 0
    other: int = 0


class DocumentReader:
    """A committed document. `verify=False` skips the checksums of blocks, and nothing else.

    Raises what `load_manifest` raises; StoreDamaged from every method that meets a file that is not as
    written.
    """

    def __init__(self, folder: Path, verify: bool = True) -> None:
        self.folder, self.verify = folder, verify
        self.manifest = load_manifest(folder)
        self.bytes_read = Traffic()
        self._geometry = self.manifest.geometry
        self._dtype, self._shape = cache_dtype(self._geometry), block_shape(self._geometry)
        self._open: dict[int, SegmentFile] = {}
        self._index: dict[str, Tensor] | None = None
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
        while self._open:
            self._open.popitem()[1].close()

    def read_blocks(self, layer: int, ids: Sequence[int] | Tensor, out: Tensor | None = None) -> Tensor:
        """Blocks `ids` (document block numbers, strictly ascending) of one layer: (n, 2, Hkv, b, d), on the
        CPU.

        `out`, possibly pinned, contiguous, of the store's dtype and with n or more blocks, is filled from its
        start and returned cut to n; after an error its content is undefined. Raises StoreDamaged naming file,
        layer and block, ValueError.
        """
        wanted = ids.cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
        count = len(wanted)
        result = self._buffer(count, out)
        if not 0 <= layer < self._geometry.layers:
            raise ValueError(f"there is no layer {layer}")
        if not count:
            return result
        if wanted.dtype.kind != "i" or wanted.ndim != 1:  # a fraction must not be cut off in silence
            raise ValueError("block numbers must be a list of integers")
        steps = np.diff(wanted)
        if wanted[0] < 0 or wanted[-1] >= self.manifest.block_count or (count > 1 and steps.min() < 1):
            raise ValueError("block numbers must be strictly ascending and within the document")
        runs = self._runs(wanted, steps)
        for start in range(0, len(runs), _BATCH):
            self._read_runs(layer, runs[start : start + _BATCH], raw(result))
        self.bytes_read.blocks += count * self._geometry.block_bytes
        return result

    def index(self) -> dict[str, Tensor]:
        """representatives (L, N, R, Hkv, d) and whatever else was committed; loaded and verified once."""
        if self._index is None:
            self._index = load_tensors(self.folder / INDEX, self.manifest.index)
            self._check(INDEX, self._index)
            self.bytes_read.index += self.manifest.index.bytes
        return self._index

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
        try:
            (check_tokens if name == TOKENS else check_index)(tensors, self.manifest)
        except ValueError as error:
            raise damaged(self.folder / name, str(error)) from error

    def _runs(self, wanted: npt.NDArray[Any], steps: npt.NDArray[Any]) -> list[tuple[int, int, int, int]]:
        """Neighbours within a segment, for one read each: the segment's number, the first block in it, and
        the range [begin, end) of `wanted`."""
        per_segment = self._geometry.segment_blocks
        breaks = np.flatnonzero((steps != 1) | (np.diff(wanted // per_segment) != 0)) + 1
        edges = [0, *breaks.tolist(), len(wanted)]
        firsts = wanted[edges[:-1]].tolist()
        return [
            (*divmod(first, per_segment), begin, end)
            for first, begin, end in zip(firsts, edges[:-1], edges[1:], strict=True)
        ]

    def _read_runs(self, layer: int, runs: list[tuple[int, int, int, int]], view: memoryview) -> None:
        while len(self._open) > _MAX_OPEN - _BATCH:
            self._open.pop(next(iter(self._open))).close()
        size, digest = self._geometry.block_bytes, xxhash.xxh3_64_intdigest
        places = [(self._segment(number), within, begin, end) for number, within, begin, end in runs]
        if _ANNOUNCE and len(places) > 1:
            # The disk then works on all of them at once: cold reads take less than half the time.
            for segment, within, begin, end in places:
                offset = segment.offset(layer, within)
                os.posix_fadvise(segment.fd, offset, (end - begin) * size, os.POSIX_FADV_WILLNEED)
        for segment, within, begin, end in places:
            part = view[begin * size : end * size]
            read_exact(segment.fd, part, segment.offset(layer, within), segment.path)
            if not self.verify:
                continue
            expected = segment.table[layer, within : within + end - begin].tolist()
            for block, checksum in enumerate(expected):
                if digest(part[block * size : (block + 1) * size]) != checksum:
                    raise block_damaged(segment.path, layer, within + block)

    def _segment(self, number: int) -> SegmentFile:
        found = self._open.get(number)
        if found is None:
            found = SegmentFile(self.folder, self.manifest.segments[number], self._geometry)
            self._open[number] = found
            self.bytes_read.other += found.header_bytes
            if _ANNOUNCE:  # no read-ahead: the neighbours of a block are seldom wanted
                os.posix_fadvise(found.fd, 0, 0, os.POSIX_FADV_RANDOM)
        return found

    def _buffer(self, count: int, out: Tensor | None) -> Tensor:
        if out is None:
            return torch.empty((count, *self._shape), dtype=self._dtype)
        if (
            out.device.type != "cpu"
            or out.dtype != self._dtype
            or out.dim() != 5
            or tuple(out.shape[1:]) != self._shape
            or out.shape[0] < count
            or not out.is_contiguous()
        ):
            raise ValueError(f"out must be a contiguous {self._dtype} CPU tensor of {count} or more {self._shape}")
        return out[:count]
