"""The Triton kernel: one program halves its way to the score from which on there are `count`, then writes their ids.

The row is not sorted, each step only counts. Halving runs over the scores' bits, so that 32 steps always suffice; most
often half as many do, for it is enough that the count agrees.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 16384  # scores that the program keeps; any others it reads again, mostly from its own cache
_WRITTEN = 4096  # scores at a time in the last pass, whose running sums take registers


def top_blocks(scores: Tensor, count: int | Tensor, first: int, max_count: int) -> tuple[Tensor, Tensor]:
    ids = torch.empty(max_count, dtype=torch.int32, device=scores.device)
    taken = torch.empty((), dtype=torch.int32, device=scores.device)
    tile = min(max(triton.next_power_of_2(scores.numel()), 32), _TILE)
    _top_blocks[(1,)](
        scores.contiguous(),
        count,
        ids,
        taken,
        scores.numel(),
        first,
        max_count,
        COUNT_IS_TENSOR=isinstance(count, Tensor),
        TILE=tile,
        WRITTEN=min(tile, _WRITTEN),
        num_warps=min(max(tile // 256, 1), 16),
    )
    return ids, taken


@triton.jit(do_not_specialize=["count", "n", "first", "max_count"])
def _top_blocks(
    p_scores,  # (n,)
    count,
    p_ids,  # (max_count,)
    p_taken,  # ()
    n,
    first,
    max_count,
    COUNT_IS_TENSOR: tl.constexpr,
    TILE: tl.constexpr,
    WRITTEN: tl.constexpr,
):
    if COUNT_IS_TENSOR:
        count = tl.load(count)
    count = tl.maximum(tl.minimum(tl.minimum(count, n), max_count), 0).to(tl.int32)
    tl.store(p_taken, count)

    # The last scores are kept: the others are then whole tiles, read without a mask.
    i = tl.arange(0, TILE)
    others = n // TILE * TILE
    b_score = tl.load(p_scores + others + i, mask=others + i < n, other=float("nan"))
    b_order = _order(b_score)
    low, high = tl.min(tl.where(others + i < n, b_order, 2147483647)), tl.max(b_order)
    for start in range(0, others, TILE):
        b_order = _order(tl.load(p_scores + start + i))
        low, high = tl.minimum(low, tl.min(b_order)), tl.maximum(high, tl.max(b_order))

    # `found` scores are `low` or more, no fewer than are wanted; `above` are more than `high`, fewer than are wanted.
    found, above = n, 0
    while (found > count) & (low < high):
        middle = ((low.to(tl.int64) + high + 1) >> 1).to(tl.int32)
        score = _flipped(middle).to(tl.float32, bitcast=True)
        b_here = (b_score >= score).to(tl.int32)
        for start in range(0, others, TILE):
            b_here += (tl.load(p_scores + start + i) >= score).to(tl.int32)
        here = tl.sum(b_here)
        enough = here >= count
        low, found = tl.where(enough, middle, low), tl.where(enough, here, found)
        high, above = tl.where(enough, high, middle - 1), tl.where(enough, above, here)

    # Those from `low` to `high` are equal, or all of them are wanted.
    seen, placed = 0, 0
    i = tl.arange(0, WRITTEN)
    for start in range(0, n, WRITTEN):
        b_order_here = _order(tl.load(p_scores + start + i, mask=start + i < n, other=float("nan")))
        b_edge = ((b_order_here >= low) & (b_order_here <= high)).to(tl.int32)
        b_wanted = (b_edge > 0) & (seen + tl.cumsum(b_edge) <= count - above)
        b_taken = ((b_order_here > high) | b_wanted).to(tl.int32)
        tl.store(p_ids + placed + tl.cumsum(b_taken) - 1, first + start + i, mask=b_taken > 0)
        seen += tl.sum(b_edge)
        placed += tl.sum(b_taken)
    for start in range(0, max_count, WRITTEN):
        tl.store(p_ids + start + i, -1, mask=(start + i >= count) & (start + i < max_count))


@triton.jit
def _order(b_score):
    """int32 that compare as the scores do: the same for 0.0 and -0.0, and for NaN just less than for -inf."""
    b_order = _flipped(b_score.to(tl.int32, bitcast=True))
    b_order = tl.where(b_order == -1, 0, b_order)  # -0.0
    return tl.where(b_score == b_score, b_order, -2139095042)


@triton.jit
def _flipped(b_bits):
    """The bits of float32 as an int32 that compares as the float does, and back."""
    return b_bits ^ ((b_bits >> 31) & 0x7FFFFFFF)
