"""The Triton kernels: attention whose online softmax goes over pages in place, split over the keys where the queries
are few; and a second pass, where it is wanted, that sums what each key received.

A head's two halves are loaded, rotated and multiplied apart: rotation then needs no shuffle, and a byte of two
4-bit codes holds a channel of each.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from actqkv_kernels.backend import interpreted
from actqkv_kernels.quantization import Quantized

_LOG2_E = tl.constexpr(1.4426950408889634)
_MOST_SPLITS = 64
_CHANGING = ["rows", "all_rows", "window"]  # differ from question to question: no kernel for each
_FEW_ROWS = 64  # queries of a kv head, up to which the keys are split over programs


@triton.jit
def _halves(p_row, seen, i_h, HALF: tl.constexpr, FULL: tl.constexpr, BITS: tl.constexpr):
    """Rows of a page, in two halves as fp32, codes not yet scaled. p_row: (N, 1) pointers; seen: (N, 1)."""
    inside = seen if FULL else seen & (i_h < HALF)[None, :]
    b_low = tl.load(p_row + i_h[None, :], mask=inside, other=0)
    if BITS == 4:
        b_high = b_low >> 4
        b_low = b_low & 15
    else:
        b_high = tl.load(p_row + HALF + i_h[None, :], mask=inside, other=0)
    return b_low.to(tl.float32), b_high.to(tl.float32)


@triton.jit
def _rotate(b_low, b_high, p_cos, p_sin, b_position, seen, i_h, HALF: tl.constexpr, FULL: tl.constexpr):
    inside = seen if FULL else seen & (i_h < HALF)[None, :]
    i_table = b_position[:, None] * HALF + i_h[None, :]
    b_cos = tl.load(p_cos + i_table, mask=inside, other=0)
    b_sin = tl.load(p_sin + i_table, mask=inside, other=0)
    return b_low * b_cos - b_high * b_sin, b_high * b_cos + b_low * b_sin


@triton.jit
def _query(
    p_query, p_where, p_cos, p_sin, i_head, i_row, there, stride_head, stride_token, window, i_h,
    GROUP: tl.constexpr, HALF: tl.constexpr, FULL: tl.constexpr, ROTATE: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Queries rotated for one side, in two halves (M, half), and their positions (M,)."""
    i_token = i_row % window
    p_row = p_query + (i_head * GROUP + i_row // window).to(tl.int64) * stride_head + i_token * stride_token
    b_where = tl.load(p_where + i_token, mask=there, other=0)
    b_low, b_high = _halves(p_row[:, None], there[:, None], i_h, HALF, FULL, 16)
    if ROTATE:
        b_low, b_high = _rotate(b_low, b_high, p_cos, p_sin, b_where, there[:, None], i_h, HALF, FULL)
    return b_low.to(DOT), b_high.to(DOT), b_where


@triton.jit
def _key(
    p_keys, p_key_scales, p_cos, p_sin, p_slots, p_positions, i_n, n_keys, last, i_head, i_h,
    stride_page, stride_kv, stride_scale_page,
    PAGE: tl.constexpr, HALF: tl.constexpr, FULL: tl.constexpr, BITS: tl.constexpr, ROTATE: tl.constexpr,
):  # fmt: skip
    """Keys i_n of a side, rotated, in two halves (N, half) fp32; their positions, slots, and rows in a page (N,).

    Those behind position `last` are not read: they may not have been written yet.
    """
    b_position = tl.load(p_positions + i_n, mask=i_n < n_keys, other=-1)
    b_slot = tl.load(p_slots + i_n // PAGE, mask=i_n < n_keys, other=0).to(tl.int64)
    seen = ((b_position >= 0) & (b_position <= last))[:, None]
    i_row = i_n % PAGE
    width: tl.constexpr = HALF if BITS == 4 else 2 * HALF
    p_row = p_keys + (b_slot * stride_page + i_head * stride_kv + i_row * width)[:, None]
    b_low, b_high = _halves(p_row, seen, i_h, HALF, FULL, BITS)
    if BITS < 16:
        inside = seen if FULL else seen & (i_h < HALF)[None, :]
        p_least = p_key_scales + (b_slot * stride_scale_page + i_head * (4 * HALF))[:, None] + i_h[None, :]
        b_low = b_low * tl.load(p_least + 2 * HALF, mask=inside, other=0) + tl.load(p_least, mask=inside, other=0)
        b_high = b_high * tl.load(p_least + 3 * HALF, mask=inside, other=0) + tl.load(
            p_least + HALF, mask=inside, other=0
        )
    if ROTATE:
        b_low, b_high = _rotate(b_low, b_high, p_cos, p_sin, b_position, seen, i_h, HALF, FULL)
    return b_low, b_high, b_position, b_slot, i_row


@triton.jit
def _scores(
    b_low, b_high, b_q_low, b_q_high, b_position, b_where, scaling, sliding_window,
    DOT: tl.constexpr, SLIDING: tl.constexpr,
):  # fmt: skip
    """Scores (M, N) in powers of two, -inf where a query does not look."""
    b_s = tl.dot(b_q_low, tl.trans(b_low.to(DOT)), input_precision="ieee")
    b_s = tl.dot(b_q_high, tl.trans(b_high.to(DOT)), b_s, input_precision="ieee") * scaling
    distance = b_where[:, None] - b_position[None, :]
    seen = (b_position >= 0)[None, :] & (distance >= 0)
    if SLIDING:
        seen = seen & (distance < sliding_window)
    return tl.where(seen, b_s * _LOG2_E, float("-inf"))


@triton.jit
def _attend_side(
    b_q_low, b_q_high, b_where, b_top, b_sum, b_low_out, b_high_out, first_tile, end_tile,
    p_keys, p_key_scales, p_values, p_value_scales, p_cos, p_sin, p_slots, p_positions, n_keys, i_head, i_h,
    stride_page, stride_kv, stride_scale_page, stride_value_page, stride_value_kv,
    scaling, sliding_window,
    PAGE: tl.constexpr, HALF: tl.constexpr, FULL: tl.constexpr, BITS: tl.constexpr, ROTATE: tl.constexpr,
    DOT: tl.constexpr, SLIDING: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Online softmax (FlashAttention, arXiv 2205.14135, algorithm 1) over tiles of one side's keys."""
    last = tl.max(b_where, 0)
    for tile in range(first_tile, end_tile):
        i_n = tile * N + tl.arange(0, N)
        b_low, b_high, b_position, b_slot, i_row = _key(
            p_keys, p_key_scales, p_cos, p_sin, p_slots, p_positions, i_n, n_keys, last, i_head, i_h,
            stride_page, stride_kv, stride_scale_page, PAGE, HALF, FULL, BITS, ROTATE,
        )  # fmt: skip
        # Before the scores: their values are then under way while the scores are computed.
        there = (b_position >= 0) & (b_position <= last)
        seen = there[:, None]
        width: tl.constexpr = HALF if BITS == 4 else 2 * HALF
        p_row = p_values + (b_slot * stride_value_page + i_head * stride_value_kv + i_row * width)[:, None]
        b_v_low, b_v_high = _halves(p_row, seen, i_h, HALF, FULL, BITS)
        if BITS < 16:
            p_scale = p_value_scales + ((b_slot * tl.num_programs(1) + i_head) * PAGE + i_row) * 2
            b_least = tl.load(p_scale, mask=there, other=0).to(tl.float32)[:, None]
            b_step = tl.load(p_scale + 1, mask=there, other=0).to(tl.float32)[:, None]
            b_v_low, b_v_high = b_v_low * b_step + b_least, b_v_high * b_step + b_least
        b_s = _scores(
            b_low,
            b_high,
            b_q_low,
            b_q_high,
            b_position,
            b_where,
            scaling,
            sliding_window,
            DOT,
            SLIDING,
        )
        b_new = tl.maximum(b_top, tl.max(b_s, 1))
        b_safe = tl.where(b_new == float("-inf"), 0.0, b_new)  # nothing seen so far: no inf - inf
        b_p = tl.exp2(b_s - b_safe[:, None])
        b_scale = tl.exp2(b_top - b_safe)
        b_sum = b_sum * b_scale + tl.sum(b_p, 1)
        b_p = b_p.to(DOT)
        b_low_out = tl.dot(b_p, b_v_low.to(DOT), b_low_out * b_scale[:, None], input_precision="ieee")
        b_high_out = tl.dot(b_p, b_v_high.to(DOT), b_high_out * b_scale[:, None], input_precision="ieee")
        b_top = b_new
    return b_top, b_sum, b_low_out, b_high_out


@triton.jit
def _attend(
    p_query, p_where, p_keys, p_key_scales, p_values, p_value_scales, p_cos, p_sin,
    p_far_slots, p_far_positions, p_far_count, p_near_slots, p_near_positions, p_near_count,
    p_out, p_top, p_sum, rows, window,
    stride_head, stride_token, stride_page, stride_kv, stride_scale_page, stride_value_page, stride_value_kv,
    scaling, sliding_window,
    GROUP: tl.constexpr, PAGE: tl.constexpr, HALF: tl.constexpr, H_TILE: tl.constexpr, BITS: tl.constexpr,
    ROTATE: tl.constexpr, ROTATE_FAR: tl.constexpr, SLIDING: tl.constexpr,
    SPLITS: tl.constexpr, NEAR_TILES: tl.constexpr, DOT: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """M rows of one kv head (query heads of its group times tokens) over a share of the tiles of keys."""
    FULL: tl.constexpr = HALF == H_TILE
    i_head = tl.program_id(1)
    i_split = tl.program_id(2)
    i_row = tl.program_id(0) * M + tl.arange(0, M)
    i_h = tl.arange(0, H_TILE)
    there = i_row < rows
    n_far = tl.load(p_far_count) * PAGE
    n_near = tl.load(p_near_count) * PAGE
    far_tiles = tl.cdiv(n_far, N)
    b_q_low, b_q_high, b_where = _query(
        p_query, p_where + window, p_cos, p_sin, i_head, i_row, there, stride_head, stride_token, window, i_h,
        GROUP, HALF, FULL, ROTATE, DOT,
    )  # fmt: skip
    # Near keys ascend, so those behind the last of these queries need no look.
    i_tile = tl.arange(0, NEAR_TILES)
    b_first = tl.load(p_near_positions + i_tile * N, mask=i_tile * N < n_near, other=2147483647)
    near_tiles = tl.sum((b_first <= tl.max(b_where, 0)).to(tl.int32), 0)
    share = tl.cdiv(far_tiles + near_tiles, SPLITS)
    first, end = i_split * share, tl.minimum((i_split + 1) * share, far_tiles + near_tiles)

    b_top = tl.full((M,), float("-inf"), tl.float32)
    b_sum = tl.zeros((M,), tl.float32)
    b_low_out = tl.zeros((M, H_TILE), tl.float32)
    b_high_out = tl.zeros((M, H_TILE), tl.float32)
    b_top, b_sum, b_low_out, b_high_out = _attend_side(
        b_q_low, b_q_high, b_where, b_top, b_sum, b_low_out, b_high_out,
        tl.maximum(first - far_tiles, 0), end - far_tiles,
        p_keys, p_key_scales, p_values, p_value_scales, p_cos, p_sin, p_near_slots, p_near_positions, n_near, i_head,
        i_h, stride_page, stride_kv, stride_scale_page, stride_value_page, stride_value_kv,
        scaling, sliding_window,
        PAGE, HALF, FULL, BITS, ROTATE, DOT, SLIDING, N,
    )  # fmt: skip
    b_q_low, b_q_high, b_where = _query(
        p_query, p_where, p_cos, p_sin, i_head, i_row, there, stride_head, stride_token, window, i_h,
        GROUP, HALF, FULL, ROTATE, DOT,
    )  # fmt: skip
    b_top, b_sum, b_low_out, b_high_out = _attend_side(
        b_q_low, b_q_high, b_where, b_top, b_sum, b_low_out, b_high_out, first, tl.minimum(end, far_tiles),
        p_keys, p_key_scales, p_values, p_value_scales, p_cos, p_sin, p_far_slots, p_far_positions, n_far, i_head,
        i_h, stride_page, stride_kv, stride_scale_page, stride_value_page, stride_value_kv,
        scaling, sliding_window,
        PAGE, HALF, FULL, BITS, ROTATE_FAR, DOT, SLIDING, N,
    )  # fmt: skip

    i_out = i_head * rows + i_row
    if SPLITS == 1:
        b_share = (1 / tl.where(b_sum > 0, b_sum, 1.0))[:, None]  # 0: it saw nothing
        b_low_out, b_high_out = b_low_out * b_share, b_high_out * b_share
    else:
        i_out = i_split * tl.num_programs(1) * rows + i_out
    tl.store(p_top + i_out, b_top, mask=there)
    tl.store(p_sum + i_out, b_sum, mask=there)
    p_row = p_out + i_out.to(tl.int64)[:, None] * (2 * HALF) + i_h[None, :]
    inside = there[:, None] & (i_h < HALF)[None, :]
    tl.store(p_row, b_low_out.to(p_out.dtype.element_ty), mask=inside)
    tl.store(p_row + HALF, b_high_out.to(p_out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_CHANGING)
def _combine(
    p_parts, p_tops, p_sums, p_out, p_top, p_sum, all_rows,
    DIM: tl.constexpr, D_TILE: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Put the parts of one row together. Rows of all heads are in the order of the output."""
    i_row = tl.program_id(0)
    i_s = tl.arange(0, SPLITS)
    i_d = tl.arange(0, D_TILE)
    b_tops = tl.load(p_tops + i_s * all_rows + i_row)
    b_sums = tl.load(p_sums + i_s * all_rows + i_row)
    top = tl.max(b_tops, 0)
    b_scales = tl.exp2(b_tops - tl.where(top == float("-inf"), 0.0, top))
    total = tl.sum(b_sums * b_scales, 0)
    b_parts = tl.load(
        p_parts + (i_s[:, None].to(tl.int64) * all_rows + i_row) * DIM + i_d[None, :],
        mask=(i_d < DIM)[None, :],
        other=0,
    )
    b_out = tl.sum(b_parts * b_scales[:, None], 0)
    b_out = b_out / tl.where(total > 0, total, 1.0)
    tl.store(p_out + i_row.to(tl.int64) * DIM + i_d, b_out.to(p_out.dtype.element_ty), mask=i_d < DIM)
    tl.store(p_top + i_row, top)
    tl.store(p_sum + i_row, total)


@triton.jit(do_not_specialize=_CHANGING)
def _receive(
    p_query, p_where, p_keys, p_key_scales, p_cos, p_sin, p_slots, p_positions, p_count, p_top, p_sum, p_mass,
    rows, window, n_all, stride_mass, stride_head, stride_token, stride_page, stride_kv, stride_scale_page,
    scaling, sliding_window,
    GROUP: tl.constexpr, PAGE: tl.constexpr, HALF: tl.constexpr, H_TILE: tl.constexpr, BITS: tl.constexpr,
    ROTATE: tl.constexpr, ROTATE_KEYS: tl.constexpr, SLIDING: tl.constexpr,
    DOT: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Attention that a tile of one side's keys received from all rows of a kv head, now that their sums are known."""
    FULL: tl.constexpr = HALF == H_TILE
    i_head = tl.program_id(1)
    i_n = tl.program_id(0) * N + tl.arange(0, N)
    i_h = tl.arange(0, H_TILE)
    n_keys = tl.load(p_count) * PAGE
    last = tl.load(p_where + window - 1)
    b_low, b_high, b_position, _, _ = _key(
        p_keys, p_key_scales, p_cos, p_sin, p_slots, p_positions, i_n, n_keys, last, i_head, i_h,
        stride_page, stride_kv, stride_scale_page, PAGE, HALF, FULL, BITS, ROTATE_KEYS,
    )  # fmt: skip
    b_mass = tl.zeros((N,), tl.float32)
    for first_row in range(0, rows, M):
        i_row = first_row + tl.arange(0, M)
        there = i_row < rows
        b_q_low, b_q_high, b_where = _query(
            p_query, p_where, p_cos, p_sin, i_head, i_row, there, stride_head, stride_token, window, i_h,
            GROUP, HALF, FULL, ROTATE, DOT,
        )  # fmt: skip
        b_s = _scores(
            b_low,
            b_high,
            b_q_low,
            b_q_high,
            b_position,
            b_where,
            scaling,
            sliding_window,
            DOT,
            SLIDING,
        )
        b_top = tl.load(p_top + i_head * rows + i_row, mask=there, other=0)
        b_sum = tl.load(p_sum + i_head * rows + i_row, mask=there, other=0)
        b_share = tl.where(b_sum > 0, 1 / tl.maximum(b_sum, 1e-30), 0.0)  # rows that are not there count for nothing
        b_top = tl.where(b_top == float("-inf"), 0.0, b_top)
        b_mass += tl.sum(tl.exp2(b_s - b_top[:, None]) * b_share[:, None], 0)
    tl.store(p_mass + i_head * stride_mass + i_n, b_mass, mask=i_n < n_all)


def paged_attention(
    query: Tensor,
    keys: Tensor | Quantized,
    values: Tensor | Quantized,
    far: Any,
    near: Any,
    query_positions: Tensor,
    scaling: float,
    rotation: tuple[Tensor, Tensor] | None,
    sliding_window: int | None,
    return_mass: bool,
) -> tuple[Tensor, Tensor | None]:
    """See `actqkv_kernels.paged_attention`. Nothing here waits for the device."""
    heads, window, dim = query.shape
    if query.stride(-1) != 1:
        query = query.contiguous()
    bits, key_codes, key_scales = _codes(keys)
    _, value_codes, value_scales = _codes(values)
    kv_heads, size = key_codes.shape[1:3]
    half, group = dim // 2, heads // kv_heads
    rows = group * window
    query_positions = query_positions.contiguous()
    cos, sin = rotation if rotation is not None else (query, query)
    device = query.device
    few = rows <= _FEW_ROWS
    m, n, warps = _tile(rows, dim, query.element_size())
    near_keys, far_keys = near.positions.numel(), far.positions.numel()
    splits = 1
    if few:
        tiles = max(1, triton.cdiv(near_keys, n) + triton.cdiv(far_keys, n))
        splits = min(tiles, max(1, 2 * _processors(device) // kv_heads), _MOST_SPLITS)
        splits = 1 << splits.bit_length() - 1  # a power of two: each number of splits is a kernel of its own
    out = torch.empty((heads, window, dim), dtype=query.dtype, device=device)
    top, total = torch.empty((2, heads, window), device=device)
    parts = (out, top, total)
    if splits > 1:
        numbers = torch.empty((2, splits, heads, window), device=device)
        parts = (torch.empty((splits, heads, window, dim), device=device), *numbers)
    place = dict(
        stride_head=query.stride(0),
        stride_token=query.stride(1),
        stride_page=key_codes.stride(0),
        stride_kv=key_codes.stride(1),
        stride_scale_page=key_scales.stride(0),
        scaling=float(scaling),
        sliding_window=sliding_window or 0,
        GROUP=group,
        PAGE=size,
        HALF=half,
        H_TILE=max(16, triton.next_power_of_2(half)),
        BITS=bits,
        ROTATE=rotation is not None,
        SLIDING=sliding_window is not None,
        DOT=tl.float32 if interpreted() or query.dtype == torch.float32 else _TYPES[query.dtype],
        M=m,
        N=n,
        num_warps=warps,
    )
    far_turns = rotation is not None and not far.as_stored
    near_turns = rotation is not None and not near.as_stored
    _attend[(triton.cdiv(rows, m), kv_heads, splits)](
        query, query_positions, key_codes, key_scales, value_codes, value_scales, cos, sin,
        far.slots, far.positions, far.count, near.slots, near.positions, near.count,
        *parts, rows, window,
        stride_value_page=value_codes.stride(0),
        stride_value_kv=value_codes.stride(1),
        ROTATE_FAR=far_turns,
        SPLITS=splits,
        NEAR_TILES=max(2, triton.next_power_of_2(triton.cdiv(near_keys, n))),
        **place,
    )  # fmt: skip
    if splits > 1:
        _combine[(heads * window,)](
            *parts, out, top, total, heads * window,
            DIM=dim,
            D_TILE=triton.next_power_of_2(dim),
            SPLITS=splits,
            )  # fmt: skip
    if not return_mass:
        return out, None
    mass = torch.empty((kv_heads, far_keys + near_keys), device=device)
    for number, (side, turns) in enumerate(((far, far_turns), (near, near_turns))):
        count = side.positions.numel()
        if count:
            _receive[(triton.cdiv(count, n), kv_heads)](
                query, query_positions[number], key_codes, key_scales, cos, sin,
                side.slots, side.positions, side.count, top, total, mass[:, number * far_keys :],
                rows, window, count, mass.stride(0),
                ROTATE_KEYS=turns,
                **place | {"M": min(m, _most_rows(dim, query.element_size()))},
            )  # fmt: skip
    return out, mass.unflatten(1, (-1, size))


def _tile(rows: int, dim: int, size: int) -> tuple[int, int, int]:
    """Queries and keys to a tile, and warps: what 16-bit numbers compile to without spilling registers."""
    few = min(max(16, triton.next_power_of_2(rows)), _most_rows(dim, size))
    many = 128 if dim <= 128 and size == 2 else 32
    m = few if rows <= _FEW_ROWS else many
    return m, 32, 4 if m * dim <= 4096 else 8


def _most_rows(dim: int, size: int) -> int:
    """Queries to a tile where the split or the second pass must fit 99 KB of shared memory, that of smaller GPUs."""
    return max(16, 16_384 // (triton.next_power_of_2(dim) * size))


_TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def _codes(pool: Tensor | Quantized) -> tuple[int, Tensor, Tensor]:
    """Bits, codes `(P, Hkv, b, ...)` and scales; numbers that are no codes stand in for their scales."""
    if isinstance(pool, Tensor):
        return 16, pool, pool
    return pool.bits, pool.codes, pool.scales


@functools.cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 8  # interpreted
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
