"""The definition (ActQKV, arXiv 2502.13542, dynamic KV cut-off), on plain numbers, one for each layer of the model.

Weights are whole numbers, in units of a part of the greatest: no sum depends on its order, and every machine finds
the same shares.
"""

import math

import torch
from torch import Tensor

UNIT = 2**30  # a total of 2^33 blocks times a weight is within 64 bits


def budget_shares(densities: Tensor, total: int, low: int, high: int) -> Tensor:
    """Shares in proportion to `densities`, each in [low, high], that sum to `total` (low * L <= total <= high * L).

    Whoever leaves the range is fixed at its end, the side that errs more first, and the rest is shared anew; what
    then is left over goes to the largest remainders.
    """
    known = [density if 0 < density < math.inf else 0.0 for density in densities.tolist()]
    blocks, remainders = [0] * len(known), [0] * len(known)
    free, left = list(range(len(known))), total
    while free:
        weights = _whole([known[i] for i in free])
        whole = sum(weights)
        for i, weight in zip(free, weights, strict=True):
            blocks[i], remainders[i] = divmod(left * weight, whole)
        over = [i for i in free if blocks[i] + (remainders[i] > 0) > high]
        under = [i for i in free if blocks[i] < low]
        if not over and not under:
            break
        excess = sum(blocks[i] - high for i in over) + sum(blocks[i] - low for i in under)
        excess += sum(remainders[i] for i in over + under) // whole
        fixed, end = (set(over), high) if excess >= 0 else (set(under), low)
        for i in fixed:
            blocks[i], remainders[i] = end, 0
        left -= end * len(fixed)
        free = [i for i in free if i not in fixed]
    by_remainder = sorted(range(len(known)), key=lambda i: (-remainders[i], i))
    for i in by_remainder[: total - sum(blocks)]:
        blocks[i] += 1
    return torch.tensor(blocks, device=densities.device)


def _whole(densities: list[float]) -> list[int]:
    """In units of the greatest's 2^-30; all the same where all are zero."""
    greatest = max(densities)
    return [int(density / greatest * UNIT) for density in densities] if greatest > 0 else [1] * len(densities)
