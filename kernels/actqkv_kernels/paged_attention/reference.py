"""The definition: gather, rotate, one softmax in fp32 over both sides, weigh the values."""

from typing import Any

import torch
from torch import Tensor

from actqkv_kernels.quantization import Quantized, dequantize_channels, dequantize_rows


def paged_attention(
    query: Tensor,
    keys: Tensor | Quantized,
    values: Tensor | Quantized,
    far: Any,
    near: Any,
    query_positions: Tensor,
    scaling: float,
    rotation: tuple[Tensor, Tensor] | None,
    sliding_window: int | None,
    return_mass: bool,
) -> tuple[Tensor, Tensor | None]:
    heads = len(query)
    all_scores, all_values = [], []
    for side, where in zip((far, near), query_positions, strict=True):
        there = torch.arange(len(side.slots), device=query.device) < side.count
        position = torch.where(there[:, None], side.positions, -1).flatten()  # (n b,)
        slots = torch.where(there, side.slots, 0)
        written = (position >= 0) & (position <= where.max())
        key = _gathered(keys, dequantize_channels, slots, written)  # (Hkv, n b, d)
        value = _gathered(values, dequantize_rows, slots, written)
        q = query.float()
        if rotation is not None:
            q, key = rotated(q, where, rotation), rotated(key, position.clamp(min=0), rotation)
        group = heads // len(key)
        scores = q @ key.repeat_interleave(group, dim=0).mT * scaling  # (H, W, n b)
        distance = where[:, None] - position
        seen = (position >= 0) & (distance >= 0)
        if sliding_window is not None:
            seen &= distance < sliding_window
        all_scores.append(scores.masked_fill(~seen, float("-inf")))
        all_values.append(value)
    scores, value = torch.cat(all_scores, dim=-1), torch.cat(all_values, dim=1)
    p = torch.softmax(scores, dim=-1).nan_to_num(0)  # nan: a query that sees nothing
    out = (p @ value.repeat_interleave(group, dim=0)).to(query.dtype)
    size = far.positions.shape[1]
    mass = p.reshape(len(value), -1, p.shape[-1]).sum(dim=1).unflatten(1, (-1, size)) if return_mass else None
    return out, mass


def _gathered(pool: Tensor | Quantized, dequantize: Any, slots: Tensor, there: Tensor) -> Tensor:
    """Pages side by side, fp32 `(Hkv, n b, d)`; what is seen by no one may be uninitialised, and becomes 0."""
    if isinstance(pool, Quantized):
        pages = dequantize(Quantized(pool.codes[slots], pool.scales[slots], pool.bits), torch.float32)
    else:
        pages = pool[slots].float()
    return pages.transpose(0, 1).flatten(1, 2).masked_fill(~there[:, None], 0)


def rotated(x: Tensor, positions: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """x `(heads, T, d)` at positions `(T,)`: (x1 cos - x2 sin, x2 cos + x1 sin), for a head's halves x1 and x2
    (RoFormer, arXiv 2104.09864, section 3.4.2)."""
    cos, sin = (table[positions.long()].float() for table in rotation)
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)
