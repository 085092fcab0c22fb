"""The dynamic KV cut-off's shares: one total of blocks, shared out over layers by density."""

from torch import Tensor

from actqkv_kernels.budget_shares import reference


def budget_shares(densities: Tensor, mean_blocks: int, most: int, least: int | None = None) -> Tensor:
    """Share `mean_blocks * L` blocks over L layers in proportion to density (ActQKV, dynamic KV cut-off).

    densities: `(L,)`, >= 0. Each share lies within [mean/2, 2 * mean], and at most `most` (the blocks there are);
    least: another lower end, or the mean where that is less. The shares sum to `min(mean_blocks, most) * L` exactly
    (largest remainder). Returns `(L,)` int64 on the CPU.
    """
    if densities.ndim != 1 or densities.numel() == 0:
        raise ValueError(f"densities must be (L,) with L > 0, got {tuple(densities.shape)}")
    if mean_blocks < 0 or most < 0 or (least is not None and least < 0):
        raise ValueError("blocks must not be negative")
    return reference.budget_shares(densities, mean_blocks, most, least)
