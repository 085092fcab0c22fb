"""Activation bias: how much a window's tokens weigh, and the probe-query, one per head, that stands for them."""

import torch
from torch import Tensor

from actqkv_kernels.activation_probe import reference
from actqkv_kernels.backend import Backend, runs_triton


def activation_probe(queries: Tensor, backend: Backend = "auto") -> Tensor:
    """The probe-query of a window: its queries' mean, weighted by activation bias (ActQKV, arXiv 2502.13542).

    queries: `(H, W, d)`, un-rotated, any float dtype; the kernel takes any strides of H and W. Returns `(H, d)` fp32.
    """
    if queries.ndim != 3 or queries.shape[1] == 0:
        raise ValueError(f"queries must be (H, W, d) with W > 0, got {tuple(queries.shape)}")
    unfit = "" if queries.stride(2) == 1 else "the queries' last dimension is not contiguous"
    if runs_triton(backend, "activation_probe", queries.device, unfit):
        from actqkv_kernels.activation_probe import kernel

        return kernel.activation_probe(queries)
    return reference.activation_probe(queries)


def activation_weights(queries: Tensor) -> Tensor:
    """What share each token of a window has in its probe-query: activation bias as weights.

    queries: `(H, W, d)`, un-rotated, any float dtype. Returns `(W,)` fp32, >= 0, sum 1. There is no kernel: it is for
    the questions of a user, once each.
    """
    if queries.shape[1] == 1:
        return queries.new_ones(1, dtype=torch.float32)
    return reference.activation_weights(queries.transpose(0, 1).flatten(1))
