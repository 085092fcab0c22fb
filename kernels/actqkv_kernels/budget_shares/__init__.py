"""The dynamic KV cut-off's shares: one total of blocks, shared out over layers by density."""

from torch import Tensor

from actqkv_kernels.backend import Backend, runs_triton
from actqkv_kernels.budget_shares import reference

_LAYERS, _TOTAL = 1024, 2**33  # what the kernel's whole numbers of 64 bits hold


def budget_shares(densities: Tensor, mean_blocks: int, max_blocks: int, backend: Backend = "auto") -> Tensor:
    """Share `mean_blocks * L` blocks over L layers in proportion to density (ActQKV, dynamic KV cut-off).

    densities: `(L,)`, >= 0; what is no finite number counts as 0. A share lies within [mean_blocks / 2,
    2 * mean_blocks] and is at most `max_blocks`, the blocks there are. The shares sum to
    `min(mean_blocks, max_blocks) * L` exactly (largest remainder, the lower layer where equal). Returns `(L,)` int64 on
    the densities' device. Raises ValueError.
    """
    if densities.ndim != 1 or densities.numel() == 0:
        raise ValueError(f"densities must be (L,) with L > 0, got {tuple(densities.shape)}")
    if mean_blocks < 0 or max_blocks < 0:
        raise ValueError("blocks must not be negative")
    layers, mean = densities.numel(), min(mean_blocks, max_blocks)
    low, high = (mean + 1) // 2, min(2 * mean, max_blocks)
    unfit = "" if layers <= _LAYERS and mean * layers < _TOTAL else f"{mean * layers} blocks of {layers} layers"
    if runs_triton(backend, "budget_shares", densities.device, unfit):
        from actqkv_kernels.budget_shares import kernel

        return kernel.budget_shares(densities, mean * layers, low, high)
    return reference.budget_shares(densities, mean * layers, low, high)
