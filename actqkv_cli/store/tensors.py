"""The small files that are loaded whole: tokens.safetensors and index.safetensors."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from actqkv_cli.store.files import Buffer, check_content, damaged, open_sized, read_exact, write_atomic
from actqkv_cli.store.header import ITEMSIZE, build_header, header_length, parse_header
from actqkv_cli.store.manifest import INDEX, METHODS, TOKENS, Draft, FileEntry
from actqkv_cli.store.segment import DTYPES, NAMES, host_bytes, raw

_NAME = re.compile(r"[a-z][a-z0-9_.]{0,63}")


def tensor_header(tensors: Mapping[str, Tensor]) -> tuple[bytes, list[str]]:
    """Header for `tensors`, and the order in which their data follows. Raises ValueError for an unfit name
    or dtype."""
    for name, tensor in tensors.items():
        if not _NAME.fullmatch(name) or tensor.dtype not in NAMES:
            raise ValueError(f"cannot store tensor {name!r} of {tensor.dtype}")
    # The widest first, so that every tensor is aligned in the file.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    return build_header([(n, NAMES[tensors[n].dtype], tuple(tensors[n].shape)) for n in order], 8), order


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> FileEntry:
    """Writes `tensors` as one safetensors file; the same tensors give the same bytes. Raises DiskFull,
    ActqkvError."""
    header, order = tensor_header(tensors)

    def chunks() -> Iterator[Buffer]:
        yield header
        for name in order:
            yield host_bytes(tensors[name])

    written = write_atomic(path, chunks())
    return FileEntry(bytes=written.bytes, xxh3=written.xxh3)


def load_tensors(path: Path, entry: FileEntry) -> dict[str, Tensor]:
    """All tensors of a file, as views of one buffer, the whole file verified first. Raises StoreDamaged."""
    with open_sized(path, entry.bytes) as fd:
        data = torch.empty(entry.bytes, dtype=torch.uint8)
        view = raw(data)
        read_exact(fd, view, 0, path)
    check_content(path, view, entry.xxh3)
    try:
        infos = parse_header(bytes(view[: header_length(bytes(view[:8]), len(view))]), len(view))
    except ValueError as error:
        raise damaged(path, str(error)) from error
    tensors = {}
    for name, info in infos.items():
        if not _NAME.fullmatch(name) or info.start % ITEMSIZE[info.dtype]:
            raise damaged(path, "a tensor in it has an unfit name or place")
        tensors[name] = data[info.start : info.end].view(DTYPES[info.dtype]).view(info.shape)
    return tensors


def check_tokens(tensors: Mapping[str, Tensor], draft: Draft) -> None:
    """Raises ValueError unless these are ids >= 0, char_start (-1: not of the text) and page (-1: none; at
    most page_count), int32 (T,) each."""
    if tensors.keys() != {"ids", "char_start", "page"}:
        raise ValueError(f"{TOKENS} must hold ids, char_start and page")
    for name, low, high in (
        ("ids", 0, None),
        ("char_start", -1, draft.source.characters),
        ("page", -1, draft.source.page_count),
    ):
        tensor = tensors[name]
        if tensor.dtype != torch.int32 or tuple(tensor.shape) != (draft.tokens,):
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)} instead of int32 ({draft.tokens},)")
        if int(tensor.min()) < low or (high is not None and int(tensor.max()) > high):
            raise ValueError(f"{name} holds a value outside of the text")


def check_index(tensors: Mapping[str, Tensor], draft: Draft) -> None:
    """Raises ValueError unless there are representatives (L, N, R, Hkv, d), floating, R >= 1."""
    geometry, found = draft.geometry, tensors.get("representatives")
    if found is None or not found.is_floating_point() or found.dim() != 5:
        raise ValueError(f"{INDEX} must hold representatives (layers, blocks, reps, kv heads, head dim)")
    expected = (
        geometry.layers,
        draft.block_count,
        max(1, found.shape[2]),
        geometry.kv_heads,
        geometry.head_dim,
    )
    if tuple(found.shape) != expected:
        raise ValueError(f"representatives are {tuple(found.shape)} instead of {expected}")


def check_methods(tensors: Mapping[str, Tensor], draft: Draft) -> None:
    """Raises ValueError unless these are tensors that `engine.methods` describes, and fit the document."""
    geometry, blocks = draft.geometry, draft.block_count
    states = (geometry.layers, blocks, 2, geometry.kv_heads, geometry.head_dim)
    shapes = {
        "l1": states,
        "l1_attended": states,
        "bounds": states,
        "anchors": (geometry.layers, blocks, 1, geometry.kv_heads, geometry.head_dim),
        "h2o": states[:2],
        "snapkv": states[:2],
        "l1_attended_mass": (blocks,),
        "l1_attended_tokens": (blocks,),
    }
    for name, tensor in tensors.items():
        if name not in shapes or tuple(tensor.shape) != shapes[name]:
            raise ValueError(f"{METHODS} holds {name} {tuple(tensor.shape)}, which does not fit the document")
        if tensor.is_floating_point() == (name == "l1_attended_tokens"):
            raise ValueError(f"{METHODS} holds {name} as {tensor.dtype}")
    tokens = tensors.get("l1_attended_tokens")
    if tokens is not None:
        inside = tokens.long() // geometry.block_size == torch.arange(blocks)
        if not bool((inside & (tokens < draft.tokens)).all()):
            raise ValueError("l1_attended_tokens names a token that is not in its block")
