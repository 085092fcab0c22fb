"""The definition (DESIGN section 4), on plain numbers: there are only as many as the model has layers."""

import torch
from torch import Tensor


def budget_shares(densities: Tensor, mean_blocks: int, most: int, least: int | None) -> Tensor:
    mean_blocks = min(mean_blocks, most)
    total = mean_blocks * densities.numel()
    low = (mean_blocks + 1) // 2 if least is None else min(least, mean_blocks)
    high = min(2 * mean_blocks, most)
    shares = _proportional_within(densities.tolist(), total, low, high)
    blocks = [int(share) for share in shares]
    by_remainder = sorted(range(len(blocks)), key=lambda i: (blocks[i] - shares[i], i))
    open_layers = [i for i in by_remainder if blocks[i] < high]
    for i in open_layers[: total - sum(blocks)]:
        blocks[i] += 1
    return torch.tensor(blocks)


def _proportional_within(weights: list[float], total: int, low: int, high: int) -> list[float]:
    """Shares proportional to `weights`, each in [low, high], that sum to `total` (low * L <= total <= high * L).

    Whoever leaves the range is fixed at its end, the side that errs more first, and the rest is shared anew.
    """
    shares = [0.0] * len(weights)
    free = set(range(len(weights)))
    left = float(total)
    while free:
        weight = sum(weights[i] for i in free)
        for i in free:
            shares[i] = left * weights[i] / weight if weight > 0 else left / len(free)
        over = {i for i in free if shares[i] > high}
        under = {i for i in free if shares[i] < low}
        if not over and not under:
            break
        excess = sum(shares[i] - high for i in over) - sum(low - shares[i] for i in under)
        fixed, bound = (over, high) if over and excess >= 0 else (under, low)
        if not fixed:
            fixed, bound = over, high
        for i in fixed:
            shares[i] = bound
            left -= bound
        free -= fixed
    return shares
