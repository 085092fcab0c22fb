"""The definition (ActQKV, arXiv 2502.13542, activation bias), all in fp32."""

import torch
from torch import Tensor

EPSILON = 0.01  # share of the mean variance added to each dimension's, so that a still dimension cannot explode
STILL = torch.finfo(torch.float32).tiny  # a variance below it is none: dividing by it would overflow


def activation_bias(queries: Tensor, epsilon: float = EPSILON) -> Tensor:
    """How far each token's query stands out of its window. queries: `(W, D)`. Returns `(W,)` fp32, all >= 0.

    bias_j = mean over dimensions of (Q_j - m)^2 / (s2 + epsilon * mean(s2)), with m and s2 the mean and the
    (biased) variance over the window's tokens, a dimension at a time. With epsilon = 0 the biases sum to W.
    """
    queries = queries.float()
    squares = (queries - queries.mean(dim=0)).square()
    variance = squares.mean(dim=0)
    scale = variance + epsilon * variance.mean()
    return torch.where(scale >= STILL, squares / scale, torch.zeros_like(squares)).mean(dim=1)


def activation_weights(queries: Tensor) -> Tensor:
    """Activation bias as weights. queries: `(W, D)`. Returns `(W,)` fp32, >= 0, sum 1; uniform where nothing varies."""
    bias = activation_bias(queries)
    total = bias.sum()
    return torch.where(total > 0, bias / total, torch.full_like(bias, 1.0 / bias.numel()))


def activation_probe(queries: Tensor) -> Tensor:
    """probe = sum_j w_j Q_j. queries: `(H, W, d)`. Returns `(H, d)` fp32."""
    heads, window, dim = queries.shape
    flat = queries.transpose(0, 1).reshape(window, heads * dim)
    return (activation_weights(flat) @ flat.float()).view(heads, dim)
