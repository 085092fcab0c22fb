"""The Triton kernels: sums of exponentials for every query, in parts of the blocks; then every block's votes.

Scores are computed twice rather than stored. The queries of a kv head, of all heads of its group, are rows. No sum
depends on which program is first.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from actqkv_kernels.backend import interpreted

_BLOCKS = 64  # of a tile
_PARTS = 64  # of the blocks, at most: their sums are put together anew for every tile


def block_votes(queries: Tensor, representatives: Tensor, weights: Tensor) -> Tensor:
    heads, window, dim = queries.shape
    blocks, kv_heads, _ = representatives.shape
    votes = torch.zeros((kv_heads, blocks), dtype=torch.float32, device=queries.device)
    if not blocks or not window:
        return votes.sum(dim=0)
    rows = heads // kv_heads * window
    tile = max(min(triton.next_power_of_2(rows), 64), 16)
    tiles = triton.cdiv(blocks, _BLOCKS)
    part = triton.cdiv(tiles, _PARTS) * _BLOCKS
    parts = triton.cdiv(blocks, part)
    most, total = torch.empty((2, parts, kv_heads, rows), dtype=torch.float32, device=queries.device)
    shared = {
        "GROUP": heads // kv_heads,
        "DIM": dim,
        "CHANNELS": max(triton.next_power_of_2(dim), 16),
        "ROWS": tile,
        "BLOCKS": _BLOCKS,
        "DOT": _product_type(queries, representatives),
    }
    strides = queries.stride(0), queries.stride(1), representatives.stride(0), representatives.stride(1)
    _sums[(parts, kv_heads, triton.cdiv(rows, tile))](
        queries, representatives, most, total, *strides, blocks, window, rows, part, **shared
    )
    _votes[(tiles, kv_heads)](
        queries, representatives, weights.float().contiguous(), most, total, votes, *strides, blocks, window, rows,
        parts, PARTS=triton.next_power_of_2(parts), **shared,
    )  # fmt: skip
    return votes.sum(dim=0) / heads


def _product_type(queries: Tensor, representatives: Tensor) -> tl.dtype:
    """Products of 16 bits are exact in fp32, and quick; the interpreter gets those of bf16 wrong."""
    small = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    alike = queries.dtype == representatives.dtype and not interpreted()
    return small.get(queries.dtype, tl.float32) if alike else tl.float32


@triton.jit
def _queries(
    p_queries, i_row, window, rows, stride_head, stride_token,
    GROUP: tl.constexpr, DIM: tl.constexpr, CHANNELS: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """Rows of a kv head's queries, (ROWS, CHANNELS)."""
    i_head = tl.program_id(1) * GROUP + i_row // window
    i_channel = tl.arange(0, CHANNELS)
    p_row = p_queries + i_head.to(tl.int64) * stride_head + (i_row % window).to(tl.int64) * stride_token
    mask = (i_row < rows)[:, None] & (i_channel < DIM)[None, :]
    return tl.load(p_row[:, None] + i_channel[None, :], mask=mask, other=0).to(DOT)


@triton.jit
def _scores(
    b_queries, p_keys, i_block, blocks, stride_block, stride_kv_head, DIM: tl.constexpr, CHANNELS: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """(ROWS, BLOCKS), -inf where there is no block."""
    i_channel = tl.arange(0, CHANNELS)
    p_block = p_keys + i_block.to(tl.int64) * stride_block + tl.program_id(1) * stride_kv_head
    mask = (i_block < blocks)[:, None] & (i_channel < DIM)[None, :]
    b_keys = tl.load(p_block[:, None] + i_channel[None, :], mask=mask, other=0).to(DOT)
    b_scores = tl.dot(b_queries, tl.trans(b_keys), input_precision="ieee") / tl.sqrt(DIM * 1.0)
    return tl.where((i_block < blocks)[None, :], b_scores, float("-inf"))


@triton.jit(do_not_specialize=["blocks", "window", "rows", "part"])
def _sums(
    p_queries, p_keys, p_most, p_total, stride_head, stride_token, stride_block, stride_kv_head, blocks, window, rows,
    part, GROUP: tl.constexpr, DIM: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    i_row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    b_queries = _queries(p_queries, i_row, window, rows, stride_head, stride_token, GROUP, DIM, CHANNELS, DOT)
    b_most = tl.full([ROWS], float("-inf"), tl.float32)
    b_total = tl.zeros([ROWS], tl.float32)
    begin = tl.program_id(0) * part
    for first in range(begin, tl.minimum(begin + part, blocks), BLOCKS):
        i_block = first + tl.arange(0, BLOCKS)
        b_scores = _scores(b_queries, p_keys, i_block, blocks, stride_block, stride_kv_head, DIM, CHANNELS, DOT)
        b_top = tl.maximum(b_most, tl.max(b_scores, axis=1))
        b_total = b_total * tl.exp(b_most - b_top) + tl.sum(tl.exp(b_scores - b_top[:, None]), axis=1)
        b_most = b_top
    place = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * rows + i_row
    tl.store(p_most + place, b_most, mask=i_row < rows)
    tl.store(p_total + place, b_total, mask=i_row < rows)


@triton.jit(do_not_specialize=["blocks", "window", "rows", "parts"])
def _votes(
    p_queries, p_keys, p_weights, p_most, p_total, p_votes, stride_head, stride_token, stride_block, stride_kv_head,
    blocks, window, rows, parts, PARTS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, CHANNELS: tl.constexpr,
    ROWS: tl.constexpr, BLOCKS: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    i_block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    i_part = tl.arange(0, PARTS)
    b_votes = tl.zeros([BLOCKS], tl.float32)
    for first in range(0, rows, ROWS):
        i_row = first + tl.arange(0, ROWS)
        place = (i_part * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)[:, None] * rows + i_row[None, :]
        there = (i_part < parts)[:, None] & (i_row < rows)[None, :]
        b_most = tl.load(p_most + place, mask=there, other=float("-inf"))
        b_total = tl.load(p_total + place, mask=there, other=0)
        b_top = tl.where(i_row < rows, tl.max(b_most, axis=0), 0.0)
        b_sum = tl.where(i_row < rows, tl.sum(b_total * tl.exp(b_most - b_top[None, :]), axis=0), 1.0)
        b_weight = tl.load(p_weights + i_row % window, mask=i_row < rows, other=0) / b_sum
        b_queries = _queries(p_queries, i_row, window, rows, stride_head, stride_token, GROUP, DIM, CHANNELS, DOT)
        b_scores = _scores(b_queries, p_keys, i_block, blocks, stride_block, stride_kv_head, DIM, CHANNELS, DOT)
        b_votes += tl.sum(tl.exp(b_scores - b_top[:, None]) * b_weight[:, None], axis=0)
    tl.store(p_votes + tl.program_id(1).to(tl.int64) * blocks + i_block, b_votes, mask=i_block < blocks)
