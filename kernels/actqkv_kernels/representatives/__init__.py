"""Block representatives: the small key summary of a block that retrieval scores."""

from torch import Tensor

from actqkv_kernels.backend import Backend, runs_triton
from actqkv_kernels.representatives import reference


def mean_representatives(keys: Tensor, tokens: Tensor, backend: Backend = "auto") -> Tensor:
    """The mean of a block's keys.

    keys: `(..., Hkv, b, d)`, un-rotated; tokens: int, how many of a block's b keys are real (1..b), `(...)` or less
    where blocks repeat. What stands behind them is not looked at. Returns `(..., 1, Hkv, d)` in the keys' dtype.
    """
    if runs_triton(backend, "mean_representatives", keys.device):
        from actqkv_kernels.representatives import kernel

        return kernel.mean_representatives(keys, tokens)
    return reference.mean_representatives(keys, tokens)


def anchor_representatives(keys: Tensor, mass: Tensor, anchors: int = 4, backend: Backend = "auto") -> Tensor:
    """The mean of the `anchors` keys of a block that received most local attention (InfLLM, ActQKV).

    keys: `(..., Hkv, b, d)`; mass: `(..., Hkv, b)`, attention received, -inf where there is no key. Of keys that
    received the same, the first count. Returns `(..., 1, Hkv, d)` in the keys' dtype.
    """
    if mass.shape != keys.shape[:-1]:
        raise ValueError(f"mass must be {tuple(keys.shape[:-1])}, got {tuple(mass.shape)}")
    if runs_triton(backend, "anchor_representatives", keys.device):
        from actqkv_kernels.representatives import kernel

        return kernel.anchor_representatives(keys, mass, anchors)
    return reference.anchor_representatives(keys, mass, anchors)
