"""Reading any blocks of a layer out of a document's segments: the hot path of the store."""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from torch import Tensor

from actqkv_cli.store.files import read_exact
from actqkv_cli.store.manifest import Geometry, Segment
from actqkv_cli.store.segment import SegmentFile, block_damaged, block_shape, cache_dtype, raw

_CAN_ADVISE = hasattr(os, "posix_fadvise")  # Linux
_MAX_OPEN = 128  # segments open at once: macOS allows a process 256 files
_BATCH = 64  # runs of blocks read at once, each from one segment


@dataclass
class Traffic:
    """Bytes read since `reset`: cache blocks, the index, everything else (tokens, text, headers, checksum tables)."""

    blocks: int = 0
    index: int = 0
    other: int = 0

    def reset(self) -> None:
        self.blocks = self.index = self.other = 0


class BlockFiles:
    """The segments of one document, opened as they are needed. `segments` tells those that there are now."""

    def __init__(self, folder: Path, geometry: Geometry, segments: Callable[[], Sequence[Segment]]) -> None:
        self.bytes_read = Traffic()
        self._folder, self._geometry, self._segments = folder, geometry, segments
        self._open: dict[int, SegmentFile] = {}
        self._lock = threading.Lock()  # blocks are read ahead in the background

    def close(self) -> None:
        """Closes the segments. What was read stays usable."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()

    def read(self, layer: int, ids: Sequence[int] | Tensor, pinned: bool = False) -> Tensor:
        """Blocks `ids` (document block numbers, strictly ascending) of one layer: (n, 2, Hkv, b, d), on the CPU.

        pinned: into memory from which a GPU copies on its own. Every block is compared with its checksum. Raises
        StoreDamaged naming file, layer and block, ValueError.
        """
        wanted = ids.cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
        count, geometry = len(wanted), self._geometry
        result = torch.empty((count, *block_shape(geometry)), dtype=cache_dtype(geometry), pin_memory=pinned)
        if not 0 <= layer < geometry.layers:
            raise ValueError(f"there is no layer {layer}")
        if not count:
            return result
        if wanted.dtype.kind != "i" or wanted.ndim != 1:  # a fraction must not be cut off in silence
            raise ValueError("block numbers must be a list of integers")
        steps = np.diff(wanted)
        last = sum(segment.blocks for segment in self._segments()) - 1
        if wanted[0] < 0 or wanted[-1] > last or (count > 1 and steps.min() < 1):
            raise ValueError("block numbers must be strictly ascending and within the document")
        runs = self._runs(wanted, steps)
        with self._lock:
            for start in range(0, len(runs), _BATCH):
                self._read_runs(layer, runs[start : start + _BATCH], raw(result))
            self.bytes_read.blocks += count * geometry.block_bytes
        return result

    def _runs(self, wanted: npt.NDArray[Any], steps: npt.NDArray[Any]) -> list[tuple[int, int, int, int]]:
        """Neighbours within a segment, for one read each: the segment's number, the first block in it, and the range
        [begin, end) of `wanted`."""
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
        if _CAN_ADVISE and len(places) > 1:
            # The disk then works on all of them at once: cold reads take less than half the time.
            for segment, within, begin, end in places:
                offset = segment.offset(layer, within)
                os.posix_fadvise(segment.fd, offset, (end - begin) * size, os.POSIX_FADV_WILLNEED)
        for segment, within, begin, end in places:
            part = view[begin * size : end * size]
            read_exact(segment.fd, part, segment.offset(layer, within), segment.path)
            expected = segment.table[layer, within : within + end - begin].tolist()
            for block, checksum in enumerate(expected):
                if digest(part[block * size : (block + 1) * size]) != checksum:
                    raise block_damaged(segment.path, layer, within + block)

    def _segment(self, number: int) -> SegmentFile:
        found = self._open.get(number)
        if found is None:
            found = SegmentFile(self._folder, self._segments()[number], self._geometry)
            self._open[number] = found
            self.bytes_read.other += found.header_bytes
            if _CAN_ADVISE:  # no read-ahead: the neighbours of a block are seldom wanted
                os.posix_fadvise(found.fd, 0, 0, os.POSIX_FADV_RANDOM)
        return found
