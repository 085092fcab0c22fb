"""A program summarises one block of one kv head; a mean reads its keys once, anchors only the keys that they are."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _mean(
    p_keys,
    p_tokens,
    p_mean,
    stride_block,
    stride_head,
    SIZE: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    i_block, i_head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    i_dim = tl.arange(0, COLUMNS)
    tokens = tl.load(p_tokens + i_block).to(tl.int32)
    p_key = p_keys + i_block * stride_block + i_head * stride_head
    b_sum = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, SIZE, ROWS):
        i_row = start + tl.arange(0, ROWS)
        mask = (i_row < tokens)[:, None] & (i_dim < DIM)[None, :]
        b_sum += tl.load(p_key + i_row[:, None] * DIM + i_dim[None, :], mask=mask, other=0).to(tl.float32)
    b_mean = tl.sum(b_sum, axis=0) / tokens
    p_out = p_mean + (i_block * tl.num_programs(1) + i_head) * DIM + i_dim
    tl.store(p_out, b_mean.to(p_mean.dtype.element_ty), mask=i_dim < DIM)


@triton.jit
def _anchors(
    p_keys,
    p_mass,
    p_mean,
    stride_block,
    stride_head,
    stride_mass_block,
    stride_mass_head,
    anchors,
    SIZE: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    i_block, i_head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    i_dim, i_row = tl.arange(0, COLUMNS), tl.arange(0, ROWS)
    p_key = p_keys + i_block * stride_block + i_head * stride_head + i_dim
    p_row = p_mass + i_block * stride_mass_block + i_head * stride_mass_head + i_row
    b_mass = tl.load(p_row, mask=i_row < SIZE, other=float("-inf")).to(tl.float32)
    b_sum = tl.zeros((COLUMNS,), tl.float32)
    count = tl.minimum(tl.sum((b_mass > float("-inf")).to(tl.int32)), anchors)  # a short block may hold fewer
    for _ in range(count):
        i_best = tl.argmax(b_mass, axis=0)  # of equal ones the first
        b_sum += tl.load(p_key + i_best * DIM, mask=i_dim < DIM, other=0).to(tl.float32)
        b_mass = tl.where(i_row == i_best, float("-inf"), b_mass)
    b_mean = b_sum / tl.maximum(count, 1)
    p_out = p_mean + (i_block * tl.num_programs(1) + i_head) * DIM + i_dim
    tl.store(p_out, b_mean.to(p_mean.dtype.element_ty), mask=i_dim < DIM)


def mean_representatives(keys: Tensor, tokens: Tensor) -> Tensor:
    blocks, out = _blocks_and_out(keys)
    size, dim = keys.shape[-2:]
    columns = triton.next_power_of_2(dim)
    _mean[blocks.shape[:2]](
        blocks,
        tokens.expand(keys.shape[:-3]).reshape(-1),
        out,
        *blocks.stride()[:2],
        SIZE=size,
        DIM=dim,
        ROWS=min(triton.next_power_of_2(size), 4096 // columns),
        COLUMNS=columns,
    )
    return out


def anchor_representatives(keys: Tensor, mass: Tensor, anchors: int) -> Tensor:
    blocks, out = _blocks_and_out(keys)
    size, dim = keys.shape[-2:]
    mass = mass.reshape(-1, *mass.shape[-2:])
    if mass.stride(-1) != 1:
        mass = mass.contiguous()
    _anchors[blocks.shape[:2]](
        blocks,
        mass,
        out,
        *blocks.stride()[:2],
        *mass.stride()[:2],
        min(anchors, size),
        SIZE=size,
        DIM=dim,
        ROWS=triton.next_power_of_2(size),
        COLUMNS=triton.next_power_of_2(dim),
        num_warps=1,
    )
    return out


def _blocks_and_out(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Keys as `(N, Hkv, b, d)`, copied only where a view cannot be that, and what is to be filled."""
    heads, size, dim = keys.shape[-3:]
    blocks = keys.reshape(-1, heads, size, dim)
    if blocks.stride()[2:] != (dim, 1):
        blocks = blocks.contiguous()
    return blocks, torch.empty((*keys.shape[:-3], 1, heads, dim), dtype=keys.dtype, device=keys.device)
