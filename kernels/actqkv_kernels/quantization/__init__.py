"""Numbers of 8 or 4 bits with a least value and a step for each group of them, as the kernels read them."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from actqkv_kernels.quantization import reference

Bits = Literal[4, 8]


@dataclass(frozen=True)
class Quantized:
    """codes: uint8 `(..., d)`, or `(..., d / 2)` for 4 bits, where a byte holds channel i below channel i + d / 2;
    scales: fp16, of every group its least value and its step."""

    codes: Tensor
    scales: Tensor
    bits: Bits


def quantize_rows(x: Tensor, bits: Bits) -> Quantized:
    """Each row of `(..., d)` is a group: values per token, and representatives. scales: `(..., 2)`."""
    _check(x, bits)
    return Quantized(*reference.quantize_rows(x, bits), bits)


def quantize_channels(x: Tensor, bits: Bits) -> Quantized:
    """Each channel of the b rows of `(..., b, d)` is a group: keys per channel (KIVI, arXiv 2402.02750).

    scales: `(..., 2, d)`. No row may be left uninitialised.
    """
    _check(x, bits)
    return Quantized(*reference.quantize_channels(x, bits), bits)


def dequantize_rows(quantized: Quantized, dtype: torch.dtype) -> Tensor:
    """Back to `(..., d)`."""
    least, step = quantized.scales.split(1, dim=-1)
    return reference.dequantize(quantized.codes, least, step, quantized.bits, dtype)


def dequantize_channels(quantized: Quantized, dtype: torch.dtype) -> Tensor:
    """Back to `(..., b, d)`."""
    least, step = quantized.scales.split(1, dim=-2)
    return reference.dequantize(quantized.codes, least, step, quantized.bits, dtype)


def _check(x: Tensor, bits: int) -> None:
    if bits not in (4, 8):
        raise ValueError(f"bits must be 4 or 8, got {bits}")
    if x.shape[-1] % 2:
        raise ValueError(f"the last dimension must be even, got {tuple(x.shape)}")
