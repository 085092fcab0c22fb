"""Reading any blocks of a layer out of a document's segments: the hot path of the store."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import Tensor

from actqkv_cli.store.files import read_exact
from actqkv_cli.store.manifest import Geometry, Segment
from actqkv_cli.store.segment import SegmentFile, block_damaged, block_shape, cache_dtype, raw

_MAX_OPEN = 128  # segments open at once: macOS allows a process 256 files


class BlockFiles:
    """The segments of one document, opened as they are needed. `segments` tells those that there are now.

    `block_bytes_read`, `table_bytes_read`: bytes of blocks, and of headers and checksum tables, read so far.
    """

    def __init__(self, folder: Path, geometry: Geometry, segments: Callable[[], Sequence[Segment]]) -> None:
        self.block_bytes_read = self.table_bytes_read = 0
        self._folder, self._geometry, self._segments = folder, geometry, segments
        self._open: dict[int, SegmentFile] = {}

    def close(self) -> None:
        """Closes the segments. What was read stays usable."""
        while self._open:
            self._open.popitem()[1].close()

    def read(self, layer: int, ids: Sequence[int] | Tensor) -> Tensor:
        """Blocks `ids` (document block numbers, strictly ascending) of one layer: (n, 2, Hkv, b, d), on the
        CPU.

        Neighbours are read together, and every block is compared with its checksum. Raises StoreDamaged
        naming file, layer and block; ValueError for blocks that there are not.
        """
        wanted = np.asarray(ids, np.int64)
        count, geometry = len(wanted), self._geometry
        result = torch.empty((count, *block_shape(geometry)), dtype=cache_dtype(geometry))
        if not 0 <= layer < geometry.layers:
            raise ValueError(f"there is no layer {layer}")
        if not count:
            return result
        steps = np.diff(wanted)
        if wanted[0] < 0 or (count > 1 and steps.min() < 1):
            raise ValueError("block numbers must be strictly ascending")
        size, per_segment = geometry.block_bytes, geometry.segment_blocks
        view, digest = raw(result), xxhash.xxh3_64_intdigest
        breaks = np.flatnonzero((steps != 1) | (np.diff(wanted // per_segment) != 0)) + 1
        edges = [0, *breaks.tolist(), count]
        for begin, end, first in zip(edges, edges[1:], wanted[edges[:-1]].tolist(), strict=False):
            number, within = divmod(first, per_segment)
            segment = self._segment(number)
            if within + end - begin > segment.segment.blocks:
                raise ValueError("block numbers must be within the document")
            read_exact(segment.fd, view[begin * size : end * size], segment.offset(layer, within), segment.path)
            expected = segment.table[layer, within : within + end - begin].tolist()
            for block, checksum in enumerate(expected, begin):
                if digest(view[block * size : (block + 1) * size]) != checksum:
                    raise block_damaged(segment.path, layer, within + block - begin)
        self.block_bytes_read += count * size
        return result

    def _segment(self, number: int) -> SegmentFile:
        found = self._open.get(number)
        if found is None:
            segments = self._segments()
            if number >= len(segments):
                raise ValueError("block numbers must be within the document")
            while len(self._open) >= _MAX_OPEN:
                self._open.pop(next(iter(self._open))).close()
            found = SegmentFile(self._folder, segments[number], self._geometry)
            self._open[number] = found
            self.table_bytes_read += found.header_bytes
            if hasattr(os, "posix_fadvise"):  # no read-ahead: the neighbours of a block are seldom wanted
                os.posix_fadvise(found.fd, 0, 0, os.POSIX_FADV_RANDOM)
        return found
