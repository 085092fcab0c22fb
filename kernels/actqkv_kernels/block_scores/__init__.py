"""Scores of all blocks for a probe-query, and the information density of a layer's scores."""

from typing import Literal

from torch import Tensor

from actqkv_kernels.block_scores import reference


def block_scores(probe: Tensor, representatives: Tensor, kind: Literal["dot", "cosine"] = "dot") -> Tensor:
    """How well each block answers a probe-query.

    probe: `(H, d)`; representatives: `(N, R, Hkv, d)`, R to a block, of which the best counts. Returns `(N,)` fp32.
    `dot` is the sum over heads of probe . representative / sqrt(d) (the paper), `cosine` the cosine of the two
    vectors of all heads (the authors' code).
    """
    if probe.shape[0] % representatives.shape[2] or probe.shape[1] != representatives.shape[3]:
        raise ValueError(f"probe {tuple(probe.shape)} does not fit representatives {tuple(representatives.shape)}")
    return reference.block_scores(probe, representatives, kind)


def density(scores: Tensor) -> Tensor:
    """Information density of a layer (ActQKV, dynamic cut-off): entropy of softmax(scores) over ln N, in [0, 1].

    scores: `(N,)`. Returns a scalar fp32 tensor; 0 where there is at most one block.
    """
    return reference.density(scores)
