"""Scores of all blocks for a probe-query, and the information density of a layer's scores."""

from typing import Literal

import torch
from torch import Tensor

from actqkv_kernels.backend import Backend, runs_triton
from actqkv_kernels.block_scores import reference
from actqkv_kernels.quantization import Quantized, dequantize_rows


def block_scores(
    probe: Tensor,
    representatives: Tensor | Quantized,
    kind: Literal["dot", "cosine"] = "dot",
    backend: Backend = "auto",
) -> Tensor:
    """How well each block answers a probe-query.

    probe: `(H, d)`; representatives: `(N, R, Hkv, d)`, R to a block, of which the best counts, or those of
    `quantize_rows`. Returns `(N,)` fp32. `dot` is the sum over heads of probe . representative / sqrt(d) (the paper),
    `cosine` the cosine of the two vectors of all heads (the authors' code).
    """
    shape = _shape(representatives)
    if len(shape) != 4 or probe.ndim != 2 or probe.shape[0] % shape[2] or probe.shape[1] != shape[3]:
        raise ValueError(f"probe {tuple(probe.shape)} does not fit representatives {shape}")
    if kind not in ("dot", "cosine"):
        raise ValueError(f"kind is dot or cosine, got {kind!r}")
    if runs_triton(backend, "block_scores", probe.device, _unfit(probe, representatives)):
        from actqkv_kernels.block_scores import kernel

        return kernel.block_scores(probe, representatives, kind)
    if isinstance(representatives, Quantized):
        representatives = dequantize_rows(representatives, torch.float32)
    return reference.block_scores(probe, representatives, kind)


def density(scores: Tensor, backend: Backend = "auto") -> Tensor:
    """Information density of a layer (ActQKV, dynamic cut-off): entropy of softmax(scores) over ln N, in [0, 1].

    scores: `(N,)`. Returns a scalar fp32 tensor; 0 where there is at most one block.
    """
    if runs_triton(backend, "density", scores.device):
        from actqkv_kernels.block_scores import kernel

        return kernel.density(scores)
    return reference.density(scores)


def _shape(representatives: Tensor | Quantized) -> tuple[int, ...]:
    if isinstance(representatives, Tensor):
        return tuple(representatives.shape)
    *rows, dim = representatives.codes.shape
    return (*rows, dim * 2 if representatives.bits == 4 else dim)


def _unfit(probe: Tensor, representatives: Tensor | Quantized) -> str:
    parts = (
        [representatives.codes, representatives.scales] if isinstance(representatives, Quantized) else [representatives]
    )
    if any(not part[0].is_contiguous() for part in parts if part.shape[0]):
        return "the representatives of a block must lie together"
    if torch.float64 in (probe.dtype, parts[0].dtype):
        return "there is no kernel for float64"
    return ""
