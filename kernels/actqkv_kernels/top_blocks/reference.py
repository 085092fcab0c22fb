"""The definition: ranked by score, then by id."""

import torch
from torch import Tensor


def top_blocks(scores: Tensor, count: int | Tensor, first: int, max_count: int) -> tuple[Tensor, Tensor]:
    n = scores.numel()
    room = torch.arange(max_count, device=scores.device)
    best = _ranks(scores).topk(min(max_count, n)).indices
    asked = room[: best.numel()] < count
    ids = torch.full_like(room, -1, dtype=torch.int32)
    ids[: best.numel()] = best.where(asked, n).sort().values.add(first).where(asked, -1).int()
    return ids, asked.sum(dtype=torch.int32)


def _ranks(scores: Tensor) -> Tensor:
    """Distinct int64, greater for a greater score, and of equal ones for the lower id. scores: `(N,)` fp32."""
    bits = scores.contiguous().view(torch.int32)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # floats compare as their bits do, the negative ones the other way
    order = order.masked_fill(scores == 0, 0).masked_fill(scores.isnan(), -(2**31))
    return (order.long() << 32) + torch.arange(scores.numel() - 1, -1, -1, device=scores.device)
