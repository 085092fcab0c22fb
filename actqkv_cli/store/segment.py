"""One segment file: `layers.N` (n, 2, Hkv, b, d), `checksums` (L, n), `representatives` (L, n, 1, Hkv, d).

A block of one layer is one contiguous range. The data begins on a page, so a block touches as few pages as it can.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from torch import Tensor

from actqkv_cli.errors import StoreDamaged
from actqkv_cli.store.files import (
    Buffer,
    check_content,
    check_file,
    damaged,
    open_regular,
    read_exact,
    write_atomic,
)
from actqkv_cli.store.header import build_header
from actqkv_cli.store.manifest import Geometry, Segment

PAGE = 4096
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
Table = npt.NDArray[np.uint64]


def cache_dtype(geometry: Geometry) -> torch.dtype:
    """The torch type of keys, values and representatives."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[geometry.dtype]


def block_shape(geometry: Geometry) -> tuple[int, int, int, int]:
    """(2, Hkv, b, d)"""
    return 2, geometry.kv_heads, geometry.block_size, geometry.head_dim


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, not copied."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def host_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor from any device, copied only if it is elsewhere or not contiguous."""
    return raw(tensor.detach().cpu().contiguous())


def block_checksums(data: memoryview, block_bytes: int) -> Table:
    """xxh3_64 of every block of `data`, (n,)."""
    digest = xxhash.xxh3_64_intdigest
    count = len(data) // block_bytes
    return np.fromiter(
        (digest(data[start : start + block_bytes]) for start in range(0, count * block_bytes, block_bytes)),
        np.uint64,
        count,
    )


def representatives_shape(geometry: Geometry, blocks: int) -> tuple[int, int, int, int, int]:
    """(L, n, 1, Hkv, d)"""
    return geometry.layers, blocks, 1, geometry.kv_heads, geometry.head_dim


def segment_header(geometry: Geometry, blocks: int) -> bytes:
    """The one header that a segment of `blocks` blocks can have."""
    layers, cache = geometry.layers, NAMES[cache_dtype(geometry)]
    tensors = [(f"layers.{layer}", cache, (blocks, *block_shape(geometry))) for layer in range(layers)]
    table = ("checksums", "I64", (layers, blocks))
    return build_header([*tensors, table, ("representatives", cache, representatives_shape(geometry, blocks))], PAGE)


def segment_bytes(geometry: Geometry, blocks: int) -> int:
    """The size of a segment of `blocks` blocks."""
    representative = geometry.block_bytes // (2 * geometry.block_size)
    per_block = geometry.block_bytes + 8 + representative
    return len(segment_header(geometry, blocks)) + geometry.layers * blocks * per_block


def write_segment_file(
    path: Path, geometry: Geometry, blocks: Tensor | Sequence[Tensor], representatives: Tensor
) -> Segment:
    """Writes one segment; `blocks` (L, n, 2, Hkv, b, d) or L tensors (n, 2, Hkv, b, d), shapes already checked.

    Holds one layer beside the caller's tensors at most. Raises DiskFull, ActqkvError.
    """
    count = representatives.shape[1]
    header, table = segment_header(geometry, count), np.empty((geometry.layers, count), np.uint64)

    def chunks() -> Iterator[Buffer]:
        yield header
        for layer in range(geometry.layers):
            data = host_bytes(blocks[layer])
            table[layer] = block_checksums(data, geometry.block_bytes)
            yield data
        yield table.tobytes()
        yield host_bytes(representatives)

    written = write_atomic(path, chunks())
    return Segment(
        file=path.name,
        blocks=count,
        bytes=written.bytes,
        xxh3=written.xxh3,
        header_xxh3=xxhash.xxh3_128_hexdigest(header),
        table_xxh3=xxhash.xxh3_128_hexdigest(table.tobytes()),
    )


class SegmentFile:
    """An open segment whose size, header and checksum table are as the manifest says. Raises StoreDamaged.

    `table` is (L, n) uint64; `offset` the position of a block in the file; `header_bytes` what opening read.
    """

    def __init__(self, folder: Path, segment: Segment, geometry: Geometry) -> None:
        self.path, self.segment, self.geometry = folder / segment.file, segment, geometry
        header = segment_header(geometry, segment.blocks)
        self._start = len(header)
        self.fd, size = open_regular(self.path)
        try:
            if size != segment.bytes:
                raise damaged(self.path, f"{size} bytes long instead of {segment.bytes}")
            self._check_header(header)
            if size != segment_bytes(geometry, segment.blocks):
                raise damaged(self.path, f"{size} bytes are not what the manifest's geometry implies")
            self.table = self._read_table()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @property
    def header_bytes(self) -> int:
        return self._start + self.table.nbytes

    def offset(self, layer: int, block: int) -> int:
        """Where block `block` (counted within the segment) of a layer begins, in bytes."""
        return self._start + (layer * self.segment.blocks + block) * self.geometry.block_bytes

    def read_layer(self, layer: int) -> Tensor:
        """All blocks of one layer, (n, 2, Hkv, b, d), verified. Raises StoreDamaged."""
        out = torch.empty(self.segment.blocks, *block_shape(self.geometry), dtype=cache_dtype(self.geometry))
        view = raw(out)
        read_exact(self.fd, view, self.offset(layer, 0), self.path)
        wrong = np.flatnonzero(block_checksums(view, self.geometry.block_bytes) != self.table[layer])
        if len(wrong):
            raise block_damaged(self.path, layer, int(wrong[0]))
        return out

    def _check_header(self, expected: bytes) -> None:
        header = bytearray(len(expected))
        read_exact(self.fd, memoryview(header), 0, self.path)
        if xxhash.xxh3_128_hexdigest(header) != self.segment.header_xxh3:
            raise damaged(self.path, "the header does not match its checksum")
        if header != expected:
            raise damaged(self.path, "the header does not describe what the manifest's geometry implies")

    def _read_table(self) -> Table:
        table = np.empty((self.geometry.layers, self.segment.blocks), np.uint64)
        view = table.reshape(-1).view(np.uint8).data
        read_exact(self.fd, view, self.offset(self.geometry.layers, 0), self.path)
        if xxhash.xxh3_128_hexdigest(view) != self.segment.table_xxh3:
            raise damaged(self.path, "the block checksums do not match their own checksum")
        return table


def block_damaged(path: Path, layer: int, block: int) -> StoreDamaged:
    """The StoreDamaged for a block, counted within its segment."""
    return damaged(path, f"block {block} of layer {layer} does not match its checksum")


def load_whole(folder: Path, segment: Segment, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Blocks (L, n, 2, Hkv, b, d) and representatives (L, n, 1, Hkv, d) of one segment, the whole file verified.

    Both are views of one buffer of the file's size. Raises StoreDamaged.
    """
    with contextlib.closing(SegmentFile(folder, segment, geometry)) as opened:
        data = torch.empty(segment.bytes, dtype=torch.uint8)
        view = raw(data)
        read_exact(opened.fd, view, 0, opened.path)
        check_content(opened.path, view, segment.xxh3)
        start, end, dtype = opened.offset(0, 0), opened.offset(geometry.layers, 0), cache_dtype(geometry)
        blocks, representatives = data[start:end], data[end + opened.table.nbytes :]
    shape = (geometry.layers, segment.blocks, *block_shape(geometry))
    rows = representatives_shape(geometry, segment.blocks)
    return blocks.view(dtype).view(shape), representatives.view(dtype).view(rows)


def check_segment(folder: Path, segment: Segment, geometry: Geometry) -> None:
    """Raises StoreDamaged unless the segment is whole: size, header, block table, and xxh3 of the whole file."""
    SegmentFile(folder, segment, geometry).close()
    check_file(folder / segment.file, segment.bytes, segment.xxh3)
