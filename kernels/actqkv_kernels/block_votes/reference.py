"""The definition, all in fp32."""

import torch
from torch import Tensor

_SCORES = 1 << 24  # held at a time, about: 64 MB


def block_votes(queries: Tensor, representatives: Tensor, weights: Tensor) -> Tensor:
    heads, window, dim = queries.shape
    blocks, kv_heads, _ = representatives.shape
    keys = representatives.float().permute(1, 2, 0)  # (Hkv, d, N)
    grouped = queries.float().view(kv_heads, -1, window, dim) * dim**-0.5
    votes = keys.new_zeros(blocks)
    tokens = max(_SCORES // max(heads * blocks, 1), 1)
    for some, share in zip(grouped.split(tokens, dim=2), weights.float().split(tokens), strict=True):
        looks = torch.softmax(some.flatten(1, 2) @ keys, dim=-1).view(heads, len(share), blocks)
        votes += torch.einsum("hwn,w->n", looks, share)
    return votes / heads
