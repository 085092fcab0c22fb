"""The definition: x is about least + step * code, with code in [0, 2^bits - 1]."""

import torch
from torch import Tensor


def quantize_rows(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    codes, least, step = _quantize(x, bits, dim=-1)
    return codes, torch.cat([least, step], dim=-1)


def quantize_channels(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    codes, least, step = _quantize(x, bits, dim=-2)
    return codes, torch.cat([least, step], dim=-2)


def _quantize(x: Tensor, bits: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    x = x.float()
    least = x.amin(dim, keepdim=True).half()
    # Rounded to fp16 first: the codes are chosen for the scales that will be read.
    step = ((x.amax(dim, keepdim=True) - least.float()) / (2**bits - 1)).half()
    codes = ((x - least.float()) / step.float().clamp(min=1e-12)).round().clamp(0, 2**bits - 1).to(torch.uint8)
    if bits == 4:
        low, high = codes.chunk(2, dim=-1)
        codes = low | (high << 4)
    return codes, least, step


def dequantize(codes: Tensor, least: Tensor, step: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    if bits == 4:
        codes = torch.cat([codes & 15, codes >> 4], dim=-1)
    return (least.float() + step.float() * codes.float()).to(dtype)
