"""Keys and values go into the pages of a pool, and a block's representative is made while it is written."""

import torch
from torch import Tensor

from actqkv_kernels.backend import Backend, runs_triton
from actqkv_kernels.page_writes import reference


def write_pages(
    key: Tensor,
    value: Tensor,
    pages: Tensor,
    slots: Tensor,
    offset: int | Tensor = 0,
    representatives: Tensor | None = None,
    backend: Backend = "auto",
) -> None:
    """Write W tokens into pages, in place: token t becomes row (offset + t) % b of page slots[(offset + t) // b].

    key, value: `(Hkv, W, d)`, un-rotated, any strides of Hkv and W; pages: `(P, 2, Hkv, b, d)` of the same dtype, keys
    then values; slots: `(n,)` int32 or int64, no page twice; they are trusted. offset: where in the first of them the
    tokens begin; as a `()` integer tensor on the device it is trusted too, so that a CUDA graph can write at a moving
    place. Other rows stay as they are. representatives: `(P, Hkv, d)` of the same dtype, which then receives the mean
    of the keys written to each page; offset must be the int 0. Raises ValueError for what does not fit.
    """
    if pages.ndim != 5 or pages.shape[1] != 2:
        raise ValueError(f"pages must be (P, 2, Hkv, b, d), got {tuple(pages.shape)}")
    count, _, heads, size, dim = pages.shape
    if key.ndim != 3 or key.shape != value.shape or (key.shape[0], key.shape[2]) != (heads, dim):
        raise ValueError(f"keys {tuple(key.shape)}, values {tuple(value.shape)} do not fit pages {tuple(pages.shape)}")
    if slots.ndim != 1 or slots.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"slots must be (n,) int32 or int64, got {tuple(slots.shape)} {slots.dtype}")
    if isinstance(offset, Tensor):
        if offset.ndim or offset.is_floating_point():
            raise ValueError(f"an offset on the device must be () integer, got {tuple(offset.shape)} {offset.dtype}")
    elif offset < 0 or offset + key.shape[1] > len(slots) * size:
        raise ValueError(f"{key.shape[1]} tokens from row {offset} do not fit {len(slots)} pages of {size}")
    if representatives is not None:
        if isinstance(offset, Tensor) or offset:
            raise ValueError("representatives are made of whole blocks: offset must be 0")
        if representatives.shape != (count, heads, dim):
            raise ValueError(f"representatives must be {(count, heads, dim)}, got {tuple(representatives.shape)}")
    for given in (value, pages, representatives):
        if given is not None and given.dtype != key.dtype:
            raise ValueError(f"keys are {key.dtype}, but other tensors {given.dtype}")
    if runs_triton(backend, "write_pages", pages.device, _unfit(key, value, pages, representatives)):
        from actqkv_kernels.page_writes import kernel

        kernel.write_pages(key, value, pages, slots, offset, representatives)
    else:
        reference.write_pages(key, value, pages, slots, offset, representatives)


def _unfit(key: Tensor, value: Tensor, pages: Tensor, representatives: Tensor | None) -> str:
    _, _, heads, size, dim = pages.shape
    if key.stride(2) != 1 or value.stride(2) != 1:
        return "the last dimension of keys or values is not contiguous"
    if pages.stride()[1:] != (heads * size * dim, size * dim, dim, 1):
        return "a page is not contiguous"
    if representatives is not None and representatives.stride()[1:] != (dim, 1):
        return "a page's representative is not contiguous"
    return ""
