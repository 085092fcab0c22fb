"""The definition, all in fp32."""

import math

import torch
from torch import Tensor


def block_scores(probe: Tensor, representatives: Tensor, kind: str) -> Tensor:
    blocks, reps, kv_heads, dim = representatives.shape
    keys = representatives.float()
    grouped = probe.float().view(kv_heads, -1, dim)
    # A representative stands once for every query head of its group, so the group's probes can be summed first.
    dot = keys.reshape(blocks * reps, kv_heads * dim) @ grouped.sum(dim=1).view(-1)
    if kind == "cosine":
        norm = keys.square().sum(dim=(2, 3)).mul(grouped.shape[1]).sqrt().view(-1) * probe.float().norm()
        scores = dot / norm.clamp(min=torch.finfo(torch.float32).tiny)
    else:
        scores = dot / math.sqrt(dim)
    return scores.view(blocks, reps).amax(dim=1)


def density(scores: Tensor) -> Tensor:
    if scores.numel() < 2:
        return torch.zeros((), device=scores.device)
    p = torch.softmax(scores.float(), dim=0)
    return torch.special.entr(p).sum().div(math.log(scores.numel())).clamp(0, 1)
