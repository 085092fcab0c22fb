"""The safetensors layout: an 8-byte little-endian header length, a JSON header, the tensors without gaps.

Written and parsed here rather than by the library because the store needs three things of it: the same bytes
from every version, data that begins on a page, and a check of every offset before anything is allocated.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actqkv_cli.errors import ActqkvError
from actqkv_cli.store.jsonfile import json_object

_MAX_HEADER = 1 << 20  # bytes
ITEMSIZE = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1}
_MAX_RANK = 8
_MAX_DIMENSION = 1 << 40


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: dtype as safetensors names it, and its byte range [start, end) in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def build_header(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]], align: int, metadata: Mapping[str, str] | None = None
) -> bytes:
    """Length and JSON for tensors (name, dtype, shape) stored in this order, padded so that the data begins at a
    multiple of `align` bytes. metadata: of the file, which the store has none of."""
    if sys.byteorder != "little":
        raise ActqkvError("the store is little-endian, and this machine is not")
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, dtype, shape in tensors:
        end = offset + ITEMSIZE[dtype] * math.prod(shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % align)
    return len(text).to_bytes(8, "little") + text


def header_length(first: bytes, file_bytes: int) -> int:
    """Bytes of length and JSON together, from a file's first 8 bytes. Raises ValueError if it cannot be right."""
    length = int.from_bytes(first, "little")
    if len(first) != 8 or not 2 <= length <= min(_MAX_HEADER, file_bytes - 8):
        raise ValueError("the header's length is not possible")
    return 8 + length


def parse_header(header: bytes, file_bytes: int) -> dict[str, TensorInfo]:
    """The tensors of a file, in the order of their data. `header` is length and JSON as `header_length` says.

    Raises ValueError unless the ranges fit dtype and shape and cover the file's data exactly, once.
    """
    if sys.byteorder != "little":
        raise ValueError("the store is little-endian, and this machine is not")
    try:
        entries = json_object(header[8:])
    except ValueError as error:
        raise ValueError("the header is no JSON object") from error
    infos = {name: _tensor_info(name, entry, len(header)) for name, entry in entries.items()}
    tensors = dict(sorted(infos.items(), key=lambda item: (item[1].start, item[1].end)))
    position = len(header)
    for name, info in tensors.items():
        if info.start != position:
            raise ValueError(f"the range of {name!r} leaves a gap or overlaps")
        position = info.end
    if position != file_bytes:
        raise ValueError(f"the header describes {position} bytes, the file has {file_bytes}")
    return tensors


def _tensor_info(name: str, entry: object, data_start: int) -> TensorInfo:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name[:64]!r} is not described as a tensor")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEMSIZE:
        raise ValueError(f"{name[:64]!r} has an unknown dtype")
    if not _integers(shape, _MAX_RANK) or not _integers(offsets, 2) or len(offsets) != 2:
        raise ValueError(f"{name[:64]!r} has an impossible shape or range")
    start, end = offsets
    if end - start != ITEMSIZE[dtype] * math.prod(shape):
        raise ValueError(f"{name[:64]!r} has a range that does not fit its shape")
    return TensorInfo(dtype, tuple(shape), data_start + start, data_start + end)


def _integers(values: object, max_length: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) <= max_length
        and all(type(value) is int and 0 <= value <= _MAX_DIMENSION for value in values)
    )
