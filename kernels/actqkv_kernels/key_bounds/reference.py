"""The definition (Quest, section 3), in fp32."""

import math

import torch
from torch import Tensor


def key_bounds(keys: Tensor, tokens: Tensor) -> Tensor:
    real = (torch.arange(keys.shape[-2], device=keys.device) < tokens[..., None])[..., None, :, None]
    least = keys.masked_fill(~real, float("inf")).amin(dim=-2)
    greatest = keys.masked_fill(~real, float("-inf")).amax(dim=-2)
    return torch.stack([least, greatest], dim=-3)


def bound_scores(queries: Tensor, bounds: Tensor) -> Tensor:
    _, _, kv_heads, dim = bounds.shape
    # max(q m, q M) is M where q is positive and m where it is negative: linear in the two parts of q, so that the
    # sums over queries and heads can be taken first.
    grouped = queries.float().view(kv_heads, -1, queries.shape[1], dim)
    positive = grouped.clamp(min=0).mean(dim=2).sum(dim=1)  # (Hkv, d)
    negative = grouped.clamp(max=0).mean(dim=2).sum(dim=1)
    least, greatest = bounds.float().flatten(2).unbind(dim=1)
    return (greatest @ positive.flatten() + least @ negative.flatten()) / math.sqrt(dim)
