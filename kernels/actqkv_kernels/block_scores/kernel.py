"""The Triton kernels: each representative is read once, and the group's probes are summed beside it."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from actqkv_kernels.quantization import Quantized

_PROGRAMS = 512  # enough to keep a GPU's memory busy
_TILE = 16384  # numbers that a program holds, at most
_DENSITY_TILE = 8192


def block_scores(probe: Tensor, representatives: Tensor | Quantized, kind: str) -> Tensor:
    if isinstance(representatives, Quantized):
        keys, scales, bits = representatives.codes, representatives.scales, int(representatives.bits)
    else:
        keys, scales, bits = representatives, representatives, 0  # no scales are read
    blocks, reps, kv_heads, width = keys.shape
    scores = torch.empty(blocks, dtype=torch.float32, device=probe.device)
    if not blocks:
        return scores
    channels, reps_tile = triton.next_power_of_2(width), triton.next_power_of_2(reps)
    heads = min(triton.next_power_of_2(kv_heads), max(1024 // channels, 1))
    rows = triton.next_power_of_2(triton.cdiv(blocks * reps_tile, _PROGRAMS))
    rows = max(min(rows, _TILE // (heads * channels)), 8, reps_tile)
    _block_scores[(triton.cdiv(blocks * reps_tile, rows),)](
        probe.contiguous(),
        keys,
        scales,
        scores,
        blocks,
        keys.stride(0),
        scales.stride(0),
        BITS=bits,
        COSINE=kind == "cosine",
        REPS=reps,
        KV_HEADS=kv_heads,
        GROUP=probe.shape[0] // kv_heads,
        DIM=probe.shape[1],
        WIDTH=width,
        ROWS=rows,
        REPS_TILE=reps_tile,
        HEADS=heads,
        CHANNELS=channels,
        num_warps=min(max(rows * heads * channels // 2048, 1), 8),
    )
    return scores


@triton.jit(do_not_specialize=["blocks"])
def _block_scores(
    p_probe,  # (H, d)
    p_keys,  # (N, R, Hkv, d), or their codes: WIDTH bytes a row
    p_scales,  # (N, R, Hkv, 2) of the codes
    p_scores,  # (N,)
    blocks,
    stride_keys,
    stride_scales,
    BITS: tl.constexpr,  # 0: not quantized
    COSINE: tl.constexpr,
    REPS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    REPS_TILE: tl.constexpr,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    i_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i_block, i_rep = (i_row // REPS_TILE).to(tl.int64), i_row % REPS_TILE
    is_row = (i_block < blocks) & (i_rep < REPS)
    i_channel = tl.arange(0, CHANNELS)
    b_dot = tl.zeros([ROWS], tl.float32)
    b_squares = tl.zeros([ROWS], tl.float32)
    b_probe_squares = tl.zeros([HEADS, CHANNELS], tl.float32)
    for first in range(0, KV_HEADS, HEADS):
        i_head = first + tl.arange(0, HEADS)
        is_key = (i_head < KV_HEADS)[:, None] & (i_channel < WIDTH)[None, :]  # (HEADS, CHANNELS)
        p_row = p_keys + i_block * stride_keys + i_rep * (KV_HEADS * WIDTH)
        p_tile = p_row[:, None, None] + (i_head[:, None] * WIDTH + i_channel[None, :])[None, :, :]
        b_stored = tl.load(p_tile, mask=is_row[:, None, None] & is_key[None, :, :], other=0)
        if BITS > 0:
            p_least = p_scales + i_block * stride_scales + i_rep * (KV_HEADS * 2)
            p_least = p_least[:, None] + i_head[None, :] * 2
            is_scale = is_row[:, None] & (i_head < KV_HEADS)[None, :]
            b_least = tl.load(p_least, mask=is_scale, other=0).to(tl.float32)[:, :, None]
            b_step = tl.load(p_least + 1, mask=is_scale, other=0).to(tl.float32)[:, :, None]
        for half in tl.static_range(DIM // WIDTH):  # a byte of 4 bits holds a channel of each half
            b_probe = tl.zeros([HEADS, CHANNELS], tl.float32)
            for member in tl.static_range(GROUP):
                i_probe = (i_head * GROUP + member)[:, None] * DIM + half * WIDTH + i_channel[None, :]
                b_query = tl.load(p_probe + i_probe, mask=is_key, other=0).to(tl.float32)
                b_probe += b_query
                b_probe_squares += b_query * b_query
            b_key = b_stored
            if BITS == 4:
                b_key = (b_stored >> (4 * half)) & 15
            b_key = b_key.to(tl.float32)
            if BITS > 0:
                b_key = tl.where(is_key[None, :, :], b_least + b_step * b_key, 0.0)
            b_dot += tl.sum(tl.reshape(b_key * b_probe[None, :, :], [ROWS, HEADS * CHANNELS]), axis=1)
            if COSINE:
                b_squares += tl.sum(tl.reshape(b_key * b_key, [ROWS, HEADS * CHANNELS]), axis=1)
    if COSINE:
        b_norm = tl.sqrt(b_squares * GROUP) * tl.sqrt(tl.sum(tl.reshape(b_probe_squares, [HEADS * CHANNELS])))
        b_score = b_dot / tl.maximum(b_norm, 1.1754943508222875e-38)  # fp32's tiny
    else:
        b_score = b_dot / tl.sqrt(DIM * 1.0)
    b_score = tl.reshape(tl.where(i_rep < REPS, b_score, float("-inf")), [ROWS // REPS_TILE, REPS_TILE])
    i_block = tl.program_id(0) * (ROWS // REPS_TILE) + tl.arange(0, ROWS // REPS_TILE)
    tl.store(p_scores + i_block, tl.max(b_score, axis=1), mask=i_block < blocks)


def density(scores: Tensor) -> Tensor:
    n = scores.numel()
    if n < 2:
        return torch.zeros((), device=scores.device)
    entropy = torch.empty((), device=scores.device)
    tile = min(triton.next_power_of_2(n), _DENSITY_TILE)
    warps = min(max(tile // 256, 1), 32)
    _density[(1,)](scores.contiguous(), entropy, n, 1 / math.log(n), TILE=tile, num_warps=warps)
    return entropy


@triton.jit(do_not_specialize=["n"])
def _density(p_scores, p_density, n, per_log_n, TILE: tl.constexpr):
    i = tl.arange(0, TILE)
    b_most = tl.full([TILE], float("-inf"), tl.float32)
    for first in range(0, n, TILE):
        b_score = tl.load(p_scores + first + i, mask=first + i < n, other=float("-inf")).to(tl.float32)
        b_most = tl.maximum(b_most, b_score)
    most = tl.max(b_most)
    b_sum = tl.zeros([TILE], tl.float32)  # of e = exp(score - most)
    b_product = tl.zeros([TILE], tl.float32)  # of e (score - most)
    for first in range(0, n, TILE):  # from the cache
        b_score = tl.load(p_scores + first + i, mask=first + i < n, other=float("-inf")).to(tl.float32)
        b_below = b_score - most
        b_e = tl.exp(b_below)
        b_sum += b_e
        b_product += b_e * tl.where(b_e > 0, b_below, 0.0)
    total = tl.sum(b_sum)
    density = (tl.log(total) - tl.sum(b_product) / total) * per_log_n
    density = tl.where(density < 0, 0.0, tl.where(density > 1, 1.0, density))  # NaN stays NaN
    tl.store(p_density, density)
