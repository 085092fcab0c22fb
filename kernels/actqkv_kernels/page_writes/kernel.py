"""A program writes the keys and values of one kv head of as many tokens as a page holds: from row 0, a whole page."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["offset", "window"])
def _write(
    p_key,
    p_value,
    p_pages,
    p_slots,
    p_representatives,
    offset,
    window,
    stride_key_head,
    stride_key_token,
    stride_value_head,
    stride_value_token,
    stride_page,
    stride_representative,
    SIZE: tl.constexpr,
    DIM: tl.constexpr,
    OFFSET_ON_DEVICE: tl.constexpr,
    MEANS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    i_head = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * SIZE
    count = tl.minimum(window - first, SIZE)
    begin = first + (tl.load(offset) if OFFSET_ON_DEVICE else offset)
    i_dim = tl.arange(0, COLUMNS)
    p_key += i_head * stride_key_head + i_dim[None, :]
    p_value += i_head * stride_value_head + i_dim[None, :]
    b_sum = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, SIZE, ROWS):
        i_row = start + tl.arange(0, ROWS)
        i_place = begin + i_row
        i_page = tl.load(p_slots + i_place // SIZE, mask=i_row < count, other=0).to(tl.int64)
        p_row = p_pages + i_page * stride_page + (i_head * SIZE + i_place % SIZE) * DIM
        p_row = p_row[:, None] + i_dim[None, :]  # (ROWS, COLUMNS)
        i_token = (first + i_row)[:, None].to(tl.int64)
        mask = (i_row < count)[:, None] & (i_dim < DIM)[None, :]
        b_key = tl.load(p_key + i_token * stride_key_token, mask=mask, other=0)
        b_value = tl.load(p_value + i_token * stride_value_token, mask=mask, other=0)
        tl.store(p_row, b_key, mask=mask)
        tl.store(p_row + tl.num_programs(1) * SIZE * DIM, b_value, mask=mask)
        if MEANS:
            b_sum += b_key.to(tl.float32)
    if MEANS:
        i_page = tl.load(p_slots + tl.program_id(0)).to(tl.int64)
        p_mean = p_representatives + i_page * stride_representative + i_head * DIM + i_dim
        b_mean = tl.sum(b_sum, axis=0) / count
        tl.store(p_mean, b_mean.to(p_representatives.dtype.element_ty), mask=i_dim < DIM)


def write_pages(
    key: Tensor, value: Tensor, pages: Tensor, slots: Tensor, offset: int | Tensor, representatives: Tensor | None
) -> None:
    heads, window, dim = key.shape
    size = pages.shape[-2]
    columns = triton.next_power_of_2(dim)
    _write[(triton.cdiv(window, size), heads)](
        key,
        value,
        pages,
        slots.contiguous(),
        representatives,
        offset,
        window,
        *key.stride()[:2],
        *value.stride()[:2],
        pages.stride(0),
        0 if representatives is None else representatives.stride(0),
        SIZE=size,
        DIM=dim,
        OFFSET_ON_DEVICE=isinstance(offset, Tensor),
        MEANS=representatives is not None,
        ROWS=min(triton.next_power_of_2(size), 4096 // columns),
        COLUMNS=columns,
    )
