"""The window is read twice: for every dimension's mean and variance, then for biases and weighted sums at once.

A window is taken as a matrix of W tokens by D = H d columns. No sum depends on which program is first.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from actqkv_kernels.activation_probe.reference import EPSILON, STILL

_PROGRAMS = 128  # that share a window's tokens: about one a multiprocessor, as each writes D partial sums
_COLUMNS = 32  # of a program that takes all tokens: a whole memory transaction of each


@triton.jit
def _columns(p_queries, i_column, stride_head, DIM: tl.constexpr):
    """Where the columns of the first token are."""
    return p_queries + (i_column // DIM).to(tl.int64) * stride_head + i_column % DIM


@triton.jit(do_not_specialize=["window"])
def _moments(
    p_queries,
    p_mean,
    p_variance,
    p_variances,
    stride_head,
    stride_token,
    window,
    columns,
    DIM: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    i_column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    i_row = tl.arange(0, TOKENS)
    there = i_column < columns
    p_column = _columns(p_queries, i_column, stride_head, DIM)

    # Moments about the mean m' of the first tile: (m' - m)^2 <= s2 W / TOKENS, which bounds what cancels. Where all
    # tokens are the same, it is theirs exactly.
    mask = (i_row < window)[:, None] & there[None, :]
    b_first = tl.load(p_column, mask=there, other=0).to(tl.float32)
    p_x = p_column[None, :] + i_row[:, None].to(tl.int64) * stride_token
    b_off = tl.load(p_x, mask=mask, other=0).to(tl.float32) - b_first[None, :]
    b_shift = b_first + tl.sum(tl.where(mask, b_off, 0.0), axis=0) / tl.minimum(window, TOKENS)

    b_sum = tl.zeros((TOKENS, COLUMNS), tl.float32)
    b_squares = tl.zeros((TOKENS, COLUMNS), tl.float32)
    for start in tl.range(0, window, TOKENS, num_stages=3):
        i_token = start + i_row
        mask = (i_token < window)[:, None] & there[None, :]
        p_x = p_column[None, :] + i_token[:, None].to(tl.int64) * stride_token
        b_x = tl.load(p_x, mask=mask, other=0).to(tl.float32)
        b_off = tl.where(mask, b_x - b_shift[None, :], 0.0)
        b_sum += b_off
        b_squares += b_off * b_off
    b_step = tl.sum(b_sum, axis=0) / window
    b_variance = tl.maximum(tl.sum(b_squares, axis=0) / window - b_step * b_step, 0.0)
    tl.store(p_mean + i_column, b_shift + b_step, mask=there)
    tl.store(p_variance + i_column, b_variance, mask=there)
    tl.store(p_variances + tl.program_id(0), tl.sum(b_variance))


@triton.jit(do_not_specialize=["window"])
def _biases_and_sums(
    p_queries,
    p_mean,
    p_variance,
    p_variances,
    p_bias,
    p_sums,
    stride_head,
    stride_token,
    window,
    columns,
    groups,
    EPSILON: tl.constexpr,
    STILL: tl.constexpr,
    DIM: tl.constexpr,
    GROUPS: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    i_token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    seen = i_token < window
    p_token = i_token[:, None].to(tl.int64) * stride_token
    i_group = tl.arange(0, GROUPS)
    floor = EPSILON * tl.sum(tl.load(p_variances + i_group, mask=i_group < groups, other=0)) / columns

    b_squares = tl.zeros((TOKENS, COLUMNS), tl.float32)
    for start in tl.range(0, columns, COLUMNS, num_stages=3):
        i_column = start + tl.arange(0, COLUMNS)
        there = i_column < columns
        b_mean = tl.load(p_mean + i_column, mask=there, other=0)
        b_scale = tl.load(p_variance + i_column, mask=there, other=0) + floor
        p_x = _columns(p_queries, i_column, stride_head, DIM)[None, :] + p_token
        b_x = tl.load(p_x, mask=seen[:, None] & there[None, :], other=0).to(tl.float32)
        b_gain = 1 / tl.where(b_scale >= STILL, b_scale, float("inf"))
        b_off = b_x - b_mean[None, :]
        b_squares += b_off * b_off * b_gain[None, :]
    b_bias = tl.where(seen, tl.sum(b_squares, axis=1) / columns, 0.0)
    tl.store(p_bias + tl.program_id(0), tl.sum(b_bias))

    p_sum = p_sums + tl.program_id(0).to(tl.int64) * columns
    for start in tl.range(0, columns, COLUMNS, num_stages=3):  # the same tokens again, out of the cache
        i_column = start + tl.arange(0, COLUMNS)
        there = i_column < columns
        p_x = _columns(p_queries, i_column, stride_head, DIM)[None, :] + p_token
        b_x = tl.load(p_x, mask=seen[:, None] & there[None, :], other=0).to(tl.float32)
        tl.store(p_sum + i_column, tl.sum(b_x * b_bias[:, None], axis=0), mask=there)


@triton.jit(do_not_specialize=["parts"])
def _combine(p_mean, p_bias, p_sums, p_probe, columns, parts, PARTS: tl.constexpr, COLUMNS: tl.constexpr):
    i_column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there = i_column < columns
    b_bias = tl.zeros((PARTS,), tl.float32)
    b_sum = tl.zeros((PARTS, COLUMNS), tl.float32)
    for start in range(0, parts, PARTS):
        i_part = start + tl.arange(0, PARTS)
        b_bias += tl.load(p_bias + i_part, mask=i_part < parts, other=0)
        p_part = p_sums + i_part[:, None].to(tl.int64) * columns + i_column[None, :]
        b_sum += tl.load(p_part, mask=(i_part < parts)[:, None] & there[None, :], other=0)
    total = tl.sum(b_bias)
    b_mean = tl.load(p_mean + i_column, mask=there)
    b_probe = tl.where(total > 0, tl.sum(b_sum, axis=0) / tl.where(total > 0, total, 1.0), b_mean)
    tl.store(p_probe + i_column, b_probe, mask=there)


def activation_probe(queries: Tensor) -> Tensor:
    heads, window, dim = queries.shape
    if window == 1:  # stands for itself
        return queries[:, 0].to(torch.float32, copy=True)
    columns = heads * dim
    groups = triton.cdiv(columns, _COLUMNS)
    tokens = min(max(triton.next_power_of_2(triton.cdiv(window, _PROGRAMS)), 4), 32)
    parts = triton.cdiv(window, tokens)
    mean, variance, probe = torch.empty((3, columns), dtype=torch.float32, device=queries.device)
    variances = torch.empty(groups, dtype=torch.float32, device=queries.device)
    bias = torch.empty(parts, dtype=torch.float32, device=queries.device)
    sums = torch.empty((parts, columns), dtype=torch.float32, device=queries.device)
    strides = queries.stride()[:2]
    _moments[(groups,)](
        queries, mean, variance, variances, *strides, window, columns, DIM=dim, TOKENS=128, COLUMNS=_COLUMNS
    )
    _biases_and_sums[(parts,)](
        queries,
        mean,
        variance,
        variances,
        bias,
        sums,
        *strides,
        window,
        columns,
        groups,
        EPSILON=EPSILON,
        STILL=STILL,
        DIM=dim,
        GROUPS=triton.next_power_of_2(groups),
        TOKENS=tokens,
        COLUMNS=4096 // tokens,
        num_warps=8,
    )
    _combine[(groups,)](mean, bias, sums, probe, columns, parts, PARTS=128, COLUMNS=_COLUMNS)
    return probe.view(heads, dim)
