"""Attention over [far: sink and retrieved blocks | near: local window and self], read in place from a pool of pages."""

from dataclasses import dataclass

import torch
from torch import Tensor

from actqkv_kernels.backend import Backend, runs_triton
from actqkv_kernels.paged_attention import reference
from actqkv_kernels.quantization import Quantized

MOST_HEAD_DIM = 256


@dataclass(frozen=True)
class PageList:
    """The pages of one side, in document order.

    slots: int32 `(n,)`, where in the pool; positions: int32 `(n, b)`, of each key, -1: seen by no one, else ascending;
    count: int32 `()`, how many of the n pages there are: the others are not looked at. as_stored: every position is 0
    or -1, and the rotation turns nothing at 0, so that the keys are taken as they are.
    """

    slots: Tensor
    positions: Tensor
    count: Tensor
    as_stored: bool = False


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
    softcap: float | None = None,
    sinks: Tensor | None = None,
    want_mass: bool = False,
    backend: Backend = "auto",
) -> PagedOutput:
    """One joint softmax over the keys of both sides, each seen by queries rotated for it (DESIGN section 3).

    query: `(H, W, d)`, un-rotated; keys, values: the pool, `(P, Hkv, b, d)` each, keys un-rotated, or of few bits:
    keys by `quantize_channels`, values by `quantize_rows`; query_positions: int32 `(2, W)`, for far and near keys,
    ascending; rotation: cos and sin, fp32 `(T, d / 2)`, by position (RoFormer, halves); None: nothing is rotated. A
    query sees a key at its own position or before, and within sliding_window if there is one; keys behind the last
    query may be uninitialised; softcap bounds the scores (Gemma 2), sinks `(H,)` are logits that take part in the
    softmax and stand for nothing (gpt-oss). A query that sees no key gets zeros. mass is summed over a kv head's
    queries. Raises ValueError for shapes that do not fit, BackendUnavailable.
    """
    _check(query, keys, values, far, near, query_positions, rotation)
    attend = reference.paged_attention
    if runs_triton(backend, "paged attention", query.device, _unfit(query)):
        from actqkv_kernels.paged_attention import kernel

        attend = kernel.paged_attention
    return PagedOutput(
        *attend(
            query,
            keys,
            values,
            far,
            near,
            query_positions,
            scaling,
            rotation,
            sliding_window,
            softcap,
            sinks,
            want_mass,
        )
    )


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
