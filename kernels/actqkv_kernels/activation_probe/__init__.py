"""Activation bias and probe-query: one query per head that stands for a window."""

from torch import Tensor

from actqkv_kernels.activation_probe import reference


def activation_probe(queries: Tensor) -> Tensor:
    """The probe-query of a window: its queries' mean, weighted by activation bias (ActQKV, arXiv 2502.13542).

    queries: `(H, W, d)`, un-rotated, any float dtype. Returns `(H, d)` fp32.
    """
    if queries.ndim != 3 or queries.shape[1] == 0:
        raise ValueError(f"queries must be (H, W, d) with W > 0, got {tuple(queries.shape)}")
    return reference.activation_probe(queries)
