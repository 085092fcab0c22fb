"""The tensors of a document beside its blocks: what there is of them, and the files that hold them."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import torch
import xxhash
from torch import Tensor

from actqkv_cli.store.files import CHUNK, Buffer, damaged, open_sized, read_exact, write_atomic
from actqkv_cli.store.header import ITEMSIZE, build_header, header_length, parse_header
from actqkv_cli.store.manifest import INDEX, METHODS, TOKENS, Draft, FileEntry, Geometry
from actqkv_cli.store.segment import DTYPES, NAMES, cache_dtype, host_bytes, raw

Like = tuple[str, tuple[int, ...]]
"""A tensor's dtype, as safetensors names it, and its shape."""


@dataclass(frozen=True)
class Stored:
    """shape: by the names of `like`; dtype: the cache's own unless said; kept: in which documents."""

    file: str
    shape: str
    dtype: str = ""
    kept: Literal["always", "with heads", "with baselines"] = "always"

    def like(self, geometry: Geometry, tokens: int, rows: int) -> Like:
        """rows: the kv heads that the retrieval heads look at, of all layers together."""
        sizes = {
            "layers": geometry.layers,
            "blocks": -(-tokens // geometry.block_size),
            "kv_heads": geometry.kv_heads,
            "head_dim": geometry.head_dim,
            "tokens": tokens,
            "rows": rows,
        }
        shape = tuple(sizes[word] if word in sizes else int(word) for word in self.shape.split())
        return self.dtype or NAMES[cache_dtype(geometry)], shape


_STATES = "layers blocks 2 kv_heads head_dim"  # a key and a value for each block
_KEYS = "layers blocks 1 kv_heads head_dim"

STORED = {
    # The prompt: token ids, the characters that tokens begin at (-1: not of the text), their pages (-1: none).
    "ids": Stored(TOKENS, "tokens", "I32"),
    "char_start": Stored(TOKENS, "tokens", "I32"),
    "page": Stored(TOKENS, "tokens", "I32"),
    # The mean of each block's keys, or of its 4 most attended ones.
    "representatives": Stored(INDEX, _KEYS),
    # All keys of the kv heads that the retrieval heads look at.
    "head_keys": Stored(INDEX, "rows tokens head_dim", kept="with heads"),
    # ACRE's L1: key and value of each block's last token.
    "l1": Stored(METHODS, _STATES),
    # Quest: the least and the greatest value of each key channel.
    "bounds": Stored(METHODS, _STATES, kept="with baselines"),
    # InfLLM: the mean of the 4 keys that received most attention.
    "anchors": Stored(METHODS, _KEYS, kept="with baselines"),
    # H2O: attention that a block received while the document was read, summed over windows.
    "h2o": Stored(METHODS, "layers blocks", "F32", "with baselines"),
    # SnapKV: pooled votes of the document's last 32 tokens.
    "snapkv": Stored(METHODS, "layers blocks", "F32", "with baselines"),
    # ACRE's L1 by each block's most attended token, which tokens these are, and what they received.
    "l1_attended": Stored(METHODS, _STATES, kept="with baselines"),
    "l1_attended_tokens": Stored(METHODS, "blocks", "I32", "with baselines"),
    "l1_attended_mass": Stored(METHODS, "blocks", "F32", "with baselines"),
}
"""Every tensor that a document may have. Keys are un-rotated."""


def names_in(file: str) -> list[str]:
    """The tensors that a file of a document may hold."""
    return [name for name, stored in STORED.items() if stored.file == file]


def file_header(tensors: Mapping[str, Like]) -> tuple[bytes, list[str]]:
    """Header of a file of tensors, and the order in which their data follows."""
    # The widest first, so that every tensor is aligned in the file.
    order = sorted(tensors, key=lambda name: (-ITEMSIZE[tensors[name][0]], name))
    return build_header([(name, *tensors[name]) for name in order], 8), order


def file_bytes(tensors: Mapping[str, Like]) -> int:
    """The size of a file of these tensors."""
    return len(file_header(tensors)[0]) + sum(ITEMSIZE[dtype] * prod(shape) for dtype, shape in tensors.values())


def like(tensors: Mapping[str, Tensor]) -> dict[str, Like]:
    """Raises ValueError for a dtype that cannot be stored."""
    if unfit := [tensor.dtype for tensor in tensors.values() if tensor.dtype not in NAMES]:
        raise ValueError(f"{unfit[0]} cannot be stored")
    return {name: (NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> FileEntry:
    """Writes `tensors` as one safetensors file; the same tensors give the same bytes. Raises DiskFull, ActqkvError."""
    header, order = file_header(like(tensors))

    def chunks() -> Iterator[Buffer]:
        yield header
        for name in order:
            yield host_bytes(tensors[name])

    written = write_atomic(path, chunks())
    return FileEntry(bytes=written.bytes, xxh3=written.xxh3)


def load_tensors(path: Path, entry: FileEntry, draft: Draft, names: Collection[str]) -> dict[str, Tensor]:
    """Those of a document's tensors with these names that its file at `path` holds. All of the file is read and
    verified, nothing else of it stays in memory. Raises StoreDamaged."""
    digest, found = xxhash.xxh3_128(), dict[str, Tensor]()
    passed = memoryview(bytearray(min(CHUNK, entry.bytes)))

    def read(view: memoryview, offset: int) -> None:
        read_exact(fd, view, offset, path)
        digest.update(view)

    try:
        with open_sized(path, entry.bytes) as fd:
            first = bytearray(min(8, entry.bytes))
            read_exact(fd, memoryview(first), 0, path)
            header = bytearray(header_length(bytes(first), entry.bytes))
            read(memoryview(header), 0)
            infos = parse_header(bytes(header), entry.bytes)
            check_tensors(path.name, {name: (info.dtype, info.shape) for name, info in infos.items()}, draft)
            for name, info in infos.items():
                if name in names:
                    found[name] = torch.empty(info.shape, dtype=DTYPES[info.dtype])
                    read(raw(found[name]), info.start)
                    continue
                for start in range(info.start, info.end, CHUNK):
                    read(passed[: info.end - start], start)
        if digest.hexdigest() != entry.xxh3:
            raise ValueError("the content does not match its checksum")
        _check_values(found, draft)
    except ValueError as error:
        raise damaged(path, str(error)) from error
    return found


def check_tensors(file: str, tensors: Mapping[str, Like], draft: Draft) -> None:
    """Raises ValueError unless `file` of this document may hold these tensors, and no others."""
    kept = ("always", "with heads") if draft.retrieval_heads else ("always",)
    needed = {name for name in names_in(file) if STORED[name].kept in kept}
    if odd := (needed - tensors.keys()) | (tensors.keys() - {*names_in(file)}):
        raise ValueError(f"{file} should hold other tensors: {', '.join(sorted(odd))[:64]!r}")
    for name, (dtype, shape) in tensors.items():
        # How many rows there are of several heads only the model can tell: they may share a kv head.
        rows = max(1, min(shape[0] if shape else 0, len(draft.retrieval_heads)))
        expected = STORED[name].like(draft.geometry, draft.tokens, rows)
        if (dtype, shape) != expected:
            raise ValueError(f"{name} is {dtype} {shape} instead of {expected[0]} {expected[1]}")


def check_document(tensors: Mapping[str, Tensor], draft: Draft) -> None:
    """Raises ValueError unless these may be all tensors of a document."""
    described = like(tensors)
    if unknown := described.keys() - STORED.keys():
        raise ValueError(f"there is no place for tensors {', '.join(sorted(unknown))}")
    for file in (TOKENS, INDEX, METHODS):
        ours = {name: described[name] for name in names_in(file) if name in described}
        if ours or file != METHODS:
            check_tensors(file, ours, draft)
    _check_values(tensors, draft)


def _check_values(tensors: Mapping[str, Tensor], draft: Draft) -> None:
    source = draft.source
    for name, low, high in (("ids", 0, None), ("char_start", -1, source.characters), ("page", -1, source.page_count)):
        if (tensor := tensors.get(name)) is None:
            continue
        if int(tensor.min()) < low or (high is not None and int(tensor.max()) > high):
            raise ValueError(f"{name} holds a value outside of the text")
    attended = tensors.get("l1_attended_tokens")
    if attended is not None:
        inside = attended.long() // draft.geometry.block_size == torch.arange(len(attended))
        if not bool((inside & (attended < draft.tokens)).all()):
            raise ValueError("l1_attended_tokens names a token that is not in its block")
