"""Votes: what share of their attention a window's queries give to each block."""

import torch
from torch import Tensor

from actqkv_kernels.backend import Backend, runs_triton
from actqkv_kernels.block_votes import reference


def block_votes(queries: Tensor, representatives: Tensor, weights: Tensor, backend: Backend = "auto") -> Tensor:
    """Each block's share of the attention of a window's queries, mean over heads: for head h and token j a softmax over
    the blocks of q_jh . k_i / sqrt(d), weighed by token.

    A vote per head keeps one of large norm from outvoting those that know (as in TokenSelect, arXiv 2411.02886).
    queries: `(H, W, d)`, un-rotated, of any strides but the last; representatives: `(N, Hkv, d)`; weights: `(W,)`, sum
    1. Returns `(N,)` fp32, >= 0, sum 1. Raises ValueError for shapes that do not fit.
    """
    heads, _, dim = queries.shape
    if representatives.ndim != 3 or heads % representatives.shape[1] or dim != representatives.shape[2]:
        raise ValueError(f"queries {tuple(queries.shape)} do not fit representatives {tuple(representatives.shape)}")
    if weights.shape != queries.shape[1:2]:
        raise ValueError(f"{queries.shape[1]} tokens, and weights {tuple(weights.shape)}")
    if runs_triton(backend, "block_votes", queries.device, _unfit(queries, representatives)):
        from actqkv_kernels.block_votes import kernel

        return kernel.block_votes(queries, representatives, weights)
    return reference.block_votes(queries, representatives, weights)


def _unfit(queries: Tensor, representatives: Tensor) -> str:
    if queries.stride(2) != 1 or representatives.stride(2) != 1:
        return "a head's numbers do not lie together"
    if torch.float64 in (queries.dtype, representatives.dtype):
        return "there is no kernel for float64"
    return ""
