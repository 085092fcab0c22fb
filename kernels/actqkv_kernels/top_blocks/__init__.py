"""The best blocks of a row of scores, without sorting it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from actqkv_kernels.backend import Backend, runs_triton
from actqkv_kernels.top_blocks import reference


@dataclass(frozen=True)
class TopBlocks:
    """On the scores' device. ids: `(max_count,)` int32, ascending, then -1; count: `()` int32, how many they are."""

    ids: Tensor
    count: Tensor


def top_blocks(
    scores: Tensor, count: int | Tensor, first: int = 0, max_count: int | None = None, backend: Backend = "auto"
) -> TopBlocks:
    """The `count` best blocks, ids ascending. Of equal scores the lower id wins; a NaN comes after all numbers.

    scores: `(N,)` fp32, of the blocks from id `first` on. count: a number, or a `()` int32 or int64 tensor on the
    scores' device, which is not waited for; then `max_count`, the room for ids, must be given (else it is `count`).
    There are min(count, N, max_count) ids. Raises ValueError.
    """
    if scores.ndim != 1 or scores.dtype != torch.float32:
        raise ValueError(f"scores must be (N,) float32, got {tuple(scores.shape)} {scores.dtype}")
    if isinstance(count, Tensor):
        if count.ndim or count.dtype not in (torch.int32, torch.int64) or count.device != scores.device:
            raise ValueError(
                f"count must be () int32 or int64 on {scores.device}, "
                f"got {tuple(count.shape)} {count.dtype} on {count.device}"
            )
        if max_count is None:
            raise ValueError("with a tensor of count, max_count must be given")
    elif max_count is None:
        max_count = count
    if max_count < 0 or (isinstance(count, int) and count < 0):
        raise ValueError(f"neither count nor max_count may be negative, got {count} and {max_count}")
    if runs_triton(backend, "top_blocks", scores.device):
        from actqkv_kernels.top_blocks import kernel

        return TopBlocks(*kernel.top_blocks(scores, count, first, max_count))
    return TopBlocks(*reference.top_blocks(scores, count, first, max_count))
