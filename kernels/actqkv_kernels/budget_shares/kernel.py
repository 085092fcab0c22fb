"""One program holds all layers, in whole numbers of 64 bits as the reference does."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from actqkv_kernels.budget_shares.reference import UNIT


@triton.jit(do_not_specialize=["total", "low", "high"])
def _share(p_densities, p_shares, total, low, high, layers, UNIT: tl.constexpr, LAYERS: tl.constexpr):
    i_layer = tl.arange(0, LAYERS)
    free = i_layer < layers
    b_density = tl.load(p_densities + i_layer, mask=free, other=0).to(tl.float64)
    b_density = tl.where((b_density > 0) & (b_density < float("inf")), b_density, 0.0)
    b_blocks = tl.zeros((LAYERS,), tl.int64)
    b_remainder = tl.zeros((LAYERS,), tl.int64)
    left = total.to(tl.int64)
    sharing = True
    while sharing:
        b_density = tl.where(free, b_density, 0.0)
        greatest = tl.max(b_density)
        b_whole = (b_density / tl.where(greatest > 0, greatest, 1.0) * UNIT).to(tl.int64)
        b_weight = tl.where(free, tl.where(greatest > 0, b_whole, 1), 0)
        weight = tl.maximum(tl.sum(b_weight), 1)
        b_share = left * b_weight // weight
        b_blocks = tl.where(free, b_share, b_blocks)
        b_remainder = tl.where(free, left * b_weight - b_share * weight, 0)
        over = free & (b_blocks + (b_remainder > 0).to(tl.int64) > high)
        under = free & (b_blocks < low)
        b_excess = tl.where(over, b_blocks - high, tl.where(under, b_blocks - low, 0))
        excess = tl.sum(b_excess) + tl.sum(tl.where(over | under, b_remainder, 0)) // weight
        fixed = tl.where(excess >= 0, over, under)
        end = tl.where(excess >= 0, high, low)
        b_blocks = tl.where(fixed, end, b_blocks)
        b_remainder = tl.where(fixed, 0, b_remainder)
        count = tl.sum(fixed.to(tl.int64))
        left -= end * count
        free = free & ~fixed
        sharing = count > 0
    for _ in range(total - tl.sum(b_blocks)):
        largest = i_layer == tl.argmax(b_remainder, axis=0)  # of equal ones the first
        b_blocks += largest.to(tl.int64)
        b_remainder = tl.where(largest, -1, b_remainder)
    tl.store(p_shares + i_layer, b_blocks, mask=i_layer < layers)


def budget_shares(densities: Tensor, total: int, low: int, high: int) -> Tensor:
    layers = densities.numel()
    shares = torch.empty(layers, dtype=torch.int64, device=densities.device)
    size = triton.next_power_of_2(layers)
    _share[(1,)](
        densities.contiguous(),
        shares,
        total,
        low,
        high,
        layers,
        UNIT=UNIT,
        LAYERS=size,
        num_warps=max(size // 128, 1),
    )
    return shares
