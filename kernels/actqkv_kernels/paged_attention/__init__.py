"""Attention over [far: sink and retrieved blocks | near: local window and self], read in place from a pool of pages."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from actqkv_kernels.backend import Backend, runs_triton
from actqkv_kernels.paged_attention import gathered, reference
from actqkv_kernels.paged_attention.reference import rotated
from actqkv_kernels.paged_attention.workspace import Workspace
from actqkv_kernels.quantization import Quantized

__all__ = ["PageList", "PagedOutput", "Workspace", "paged_attention", "pool_shape", "rotated"]

MOST_HEAD_DIM = 256


@dataclass(frozen=True)
class PageList:
    """The pages of one side, in document order. As long as a list is used, what it names may not change, but for near
    keys at the queries' own positions and behind them.

    slots: int32 `(n,)`, where in the pool; positions: int32 `(n, b)`, of each key, -1: seen by no one, else ascending;
    count: int32 `()`, how many of the n pages there are: the others are not looked at. as_stored: every position is 0
    or -1, and the rotation turns nothing at 0, so that the keys are taken as they are. kept: what an implementation
    keeps of the list from call to call.
    """

    slots: Tensor
    positions: Tensor
    count: Tensor
    as_stored: bool = False
    kept: dict[str, Any] = field(init=False, default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class PagedOutput:
    """out: `(H, W, d)` in the queries' dtype; mass: fp32 `(Hkv, F + N, b)`, attention that keys received, or None."""

    out: Tensor
    mass: Tensor | None


def paged_attention(
    query: Tensor,
    keys: Tensor | Quantized,
    values: Tensor | Quantized,
    far: PageList,
    near: PageList,
    query_positions: Tensor,
    *,
    scaling: float,
    rotation: tuple[Tensor, Tensor] | None = None,
    sliding_window: int | None = None,
    return_mass: bool = False,
    workspace: Workspace | None = None,
    backend: Backend | Literal["reference"] = "auto",
) -> PagedOutput:
    """One joint softmax over the keys of both sides, each seen by queries rotated for it.

    query: `(H, W, d)`, un-rotated; keys, values: the pool, `(P, Hkv, b, d)` each, keys un-rotated, or of few bits:
    keys by `quantize_channels`, values by `quantize_rows`; query_positions: int32 `(2, W)`, for far and near keys,
    ascending; rotation: cos and sin, fp32 `(T, d / 2)`, by position (RoFormer, halves); None: nothing is rotated. A
    query sees a key at its own position or before, and within sliding_window if there is one; near keys behind the
    last query may be uninitialised. A query that sees no key gets zeros. mass is summed over a kv head's queries.
    workspace: memory for torch's scores, kept from call to call. backend: also `reference`, the definition in fp32,
    which torch takes for few bits too. Raises ValueError for shapes that do not fit, BackendUnavailable.
    """
    _check(query, keys, values, far, near, query_positions, rotation)
    arguments = (far, near, query_positions, scaling, rotation, sliding_window, return_mass)
    if backend == "reference":
        return PagedOutput(*reference.paged_attention(query, keys, values, *arguments))
    if runs_triton(backend, "paged attention", query.device, _unfit(query)):
        from actqkv_kernels.paged_attention import kernel

        return PagedOutput(*kernel.paged_attention(query, keys, values, *arguments))
    if isinstance(keys, Quantized) or isinstance(values, Quantized):
        return PagedOutput(*reference.paged_attention(query, keys, values, *arguments))
    return PagedOutput(*gathered.paged_attention(query, keys, values, *arguments, workspace or Workspace()))


def _unfit(query: Tensor) -> str:
    if query.shape[-1] > MOST_HEAD_DIM:
        return f"heads of {query.shape[-1]} are wider than {MOST_HEAD_DIM}"
    if query.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"queries are {query.dtype}"
    return ""


def _check(
    query: Tensor,
    keys: Tensor | Quantized,
    values: Tensor | Quantized,
    far: PageList,
    near: PageList,
    query_positions: Tensor,
    rotation: tuple[Tensor, Tensor] | None,
) -> None:
    heads, window, dim = query.shape
    shapes = [pool_shape(pool) for pool in (keys, values)]
    _, kv_heads, size, width = shapes[0]
    if shapes[0] != shapes[1] or width != dim or heads % kv_heads or dim % 2:
        raise ValueError(f"pages of {shapes[0]} and {shapes[1]} do not fit {heads} heads of {dim}")
    for name, side in (("far", far), ("near", near)):
        if side.positions.shape != (len(side.slots), size) or side.slots.ndim != 1:
            raise ValueError(f"{name} positions must be {(len(side.slots), size)}, got {tuple(side.positions.shape)}")
        if {side.slots.dtype, side.positions.dtype, side.count.dtype} != {torch.int32}:
            raise ValueError(f"slots, positions and count of the {name} pages must be int32")
    if query_positions.shape != (2, window) or query_positions.dtype != torch.int32:
        raise ValueError(f"query_positions must be int32 (2, {window}), got {tuple(query_positions.shape)}")
    if rotation is not None and any(table.shape[1:] != (dim // 2,) for table in rotation):
        raise ValueError(f"cos and sin must be (T, {dim // 2})")


def pool_shape(pool: Tensor | Quantized) -> tuple[int, ...]:
    """`(P, Hkv, b, d)` of a pool, whatever it holds."""
    if isinstance(pool, Tensor):
        return tuple(pool.shape)
    *outer, width = pool.codes.shape
    return (*outer, width * 8 // pool.bits)
