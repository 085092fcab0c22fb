"""The definition."""

import torch
from torch import Tensor

from actqkv_kernels.representatives.reference import mean_representatives


def write_pages(
    key: Tensor, value: Tensor, pages: Tensor, slots: Tensor, offset: int | Tensor, representatives: Tensor | None
) -> None:
    size, window = pages.shape[-2], key.shape[1]
    states = torch.stack([key, value])  # (2, Hkv, W, d)
    if isinstance(offset, int) and offset == 0 and window % size == 0:  # whole pages: the same, ten times faster
        pages[slots[: window // size]] = states.unflatten(2, (-1, size)).permute(2, 0, 1, 3, 4)
    elif isinstance(offset, int) and window == 1:  # as each step of decoding: a fifth of the time
        pages[int(slots[offset // size]), :, :, offset % size] = states[:, :, 0]
    else:
        places = offset + torch.arange(window, device=pages.device)
        pages[slots[places // size].long(), :, :, places % size] = states.permute(2, 0, 1, 3)
    if representatives is not None:
        tokens = (window - torch.arange(0, window, size, device=pages.device)).clamp(max=size)
        written = slots[: len(tokens)].long()
        representatives[written] = mean_representatives(pages[written, 0], tokens)[:, 0]
