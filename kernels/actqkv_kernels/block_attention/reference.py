"""The definition: concatenate the scores, one softmax in fp32, weigh the values."""

import torch
from torch import Tensor


def block_attention(
    far_query: Tensor,
    near_query: Tensor,
    far: tuple[Tensor, Tensor],
    near: tuple[Tensor, Tensor],
    scaling: float,
    mask: Tensor | None,
    want_mass: bool,
) -> tuple[Tensor, Tensor | None]:
    group = near_query.shape[0] // near[0].shape[0]
    far_key, far_value, near_key, near_value = (x.float().repeat_interleave(group, dim=0) for x in (*far, *near))
    scores = torch.cat([far_query.float() @ far_key.mT, near_query.float() @ near_key.mT], dim=-1)  # (H, W, F + N)
    scores = scores * scaling
    if mask is not None:
        seen = torch.ones(scores.shape[1:], dtype=torch.bool, device=mask.device)
        seen[:, seen.shape[1] - mask.shape[1] :] = mask
        scores = scores.masked_fill(~seen, float("-inf"))
    p = torch.softmax(scores, dim=-1)
    out = (p @ torch.cat([far_value, near_value], dim=1)).to(near_query.dtype)
    mass = p.view(near[0].shape[0], -1, p.shape[-1]).sum(dim=1) if want_mass else None
    return out, mass
