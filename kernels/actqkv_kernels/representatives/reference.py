"""The definition, computed in fp32."""

import torch
from torch import Tensor


def mean_representatives(keys: Tensor, tokens: Tensor) -> Tensor:
    real = torch.arange(keys.shape[-2], device=keys.device) < tokens[..., None]  # (..., b)
    total = keys.float().masked_fill(~real[..., None, :, None], 0).sum(dim=-2)
    return (total / tokens[..., None, None]).to(keys.dtype).unsqueeze(-3)


def anchor_representatives(keys: Tensor, mass: Tensor, anchors: int) -> Tensor:
    received, order = (sorted_[..., :anchors] for sorted_ in mass.sort(dim=-1, descending=True, stable=True))
    real = (received > float("-inf"))[..., None]  # a short last block may hold fewer keys than anchors
    picked = keys.gather(-2, order[..., None].expand(*order.shape, keys.shape[-1])).float()
    total = picked.masked_fill(~real, 0).sum(dim=-2)
    return (total / real.sum(dim=-2).clamp(min=1)).to(keys.dtype).unsqueeze(-3)
