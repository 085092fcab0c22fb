"""Numbers of few bits: how far they may be off, and how they are laid out in bytes."""

import pytest
import torch
from torch import Tensor

from actqkv_kernels.quantization import (
    Bits,
    Quantized,
    dequantize_channels,
    dequantize_rows,
    quantize_channels,
    quantize_rows,
)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(1, 2), (3, 2, 33, 64), (5, 80)])
def test_nothing_is_off_by_more_than_half_a_step(shape: tuple[int, ...], bits: Bits, dtype: torch.dtype) -> None:
    x = normal(*shape).to(dtype)
    for quantize, dequantize, group in (
        (quantize_rows, dequantize_rows, -1),
        (quantize_channels, dequantize_channels, -2),
    ):
        found = dequantize(quantize(x, bits), torch.float32)
        spread = (x.amax(group, keepdim=True) - x.amin(group, keepdim=True)).float()
        allowed = 0.51 * spread / (2**bits - 1) + 2e-3 * x.float().abs().amax(group, keepdim=True)
        assert ((found - x.float()).abs() <= allowed).all()


def test_a_byte_holds_a_channel_of_each_half() -> None:
    found = quantize_rows(torch.arange(16.0), 4)
    assert found.codes.tolist() == [low | (low + 8) << 4 for low in range(8)]
    assert found.scales.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("bits", [8, 4])
def test_a_group_of_one_value_comes_back_as_it_was(bits: Bits) -> None:
    same = torch.full((3, 4, 8), -7.0)
    assert torch.equal(dequantize_rows(quantize_rows(same, bits), torch.float32), same)
    assert torch.equal(dequantize_channels(quantize_channels(same, bits), torch.float32), same)


def test_groups_do_not_see_one_another() -> None:
    x = normal(4, 16, 8)
    x[2] *= 1000
    whole, alone = quantize_channels(x, 8), quantize_channels(x[:1], 8)
    assert torch.equal(whole.codes[:1], alone.codes)
    assert torch.equal(whole.scales[:1], alone.scales)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="bits"):
        quantize_rows(normal(2, 4), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="even"):
        quantize_channels(normal(2, 5), 4)


def test_codes_are_bytes() -> None:
    found = quantize_rows(normal(6, 10), 4)
    assert isinstance(found, Quantized)
    assert found.codes.dtype == torch.uint8
    assert found.codes.shape == (6, 5)
    assert found.scales.dtype == torch.float16
