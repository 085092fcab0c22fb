"""The definition (DESIGN section 4), computed in fp32."""

import torch
from torch import Tensor


def mean_representatives(keys: Tensor, tokens: Tensor) -> Tensor:
    real = torch.arange(keys.shape[-2], device=keys.device) < tokens[..., None]  # (..., b)
    total = (keys.float() * real[..., None, :, None]).sum(dim=-2)
    return (total / tokens[..., None, None]).to(keys.dtype).unsqueeze(-3)


def anchor_representatives(keys: Tensor, mass: Tensor, anchors: int) -> Tensor:
    best = mass.topk(min(anchors, mass.shape[-1]), dim=-1)
    real = best.values > float("-inf")  # a short last block may hold fewer keys than anchors
    picked = keys.gather(-2, best.indices[..., None].expand(*best.indices.shape, keys.shape[-1])).float()
    total = (picked * real[..., None]).sum(dim=-2)
    return (total / real.sum(dim=-1, keepdim=True).clamp(min=1)).to(keys.dtype).unsqueeze(-3)
