"""Mean and anchor representatives, against loops in float64 over keys that are really there."""

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, ROUNDING, assert_near, normal
from torch import Tensor

from actqkv_kernels import anchor_representatives, mean_representatives
from actqkv_kernels.backend import Backend

BLOCKS, HEADS, SIZE, DIM = 5, 3, 8, 4
NAN = float("nan")
SIZES = [(1, 16, 64), (2, 32, 128), (8, 24, 80), (3, 64, 96), (1, 128, 256)]  # Hkv, b, d
each_backend = pytest.mark.parametrize("backend", ["torch", "triton"])


@pytest.fixture
def keys() -> Tensor:
    return normal(2, BLOCKS, HEADS, SIZE, DIM)  # two layers at once


@each_backend
@pytest.mark.parametrize("last", [1, 3, SIZE])
@pytest.mark.parametrize("dtype", DTYPES)
def test_mean_of_the_real_keys(keys: Tensor, last: int, dtype: torch.dtype, backend: Backend) -> None:
    keys = keys.to(dtype)
    keys[:, -1, :, last:] = NAN  # what stands behind the last token must not count
    tokens = torch.tensor([SIZE] * (BLOCKS - 1) + [last], device=DEVICE)
    found = mean_representatives(keys, tokens, backend=backend)
    assert found.shape == (2, BLOCKS, 1, HEADS, DIM)
    assert found.dtype == dtype
    for block, count in enumerate(tokens.tolist()):
        expected = keys[:, block, :, :count].double().mean(dim=2)
        assert_near(found[:, block, 0], expected, ROUNDING[dtype])


@each_backend
@pytest.mark.parametrize("anchors", [1, 4, SIZE, SIZE + 3])
@pytest.mark.parametrize("last", [1, 3, SIZE])
def test_mean_of_the_most_attended_keys(keys: Tensor, anchors: int, last: int, backend: Backend) -> None:
    keys[:, -1, :, last:] = NAN
    mass = normal(2, BLOCKS, HEADS, SIZE, seed=2).abs()
    mass[:, -1, :, last:] = float("-inf")
    found = anchor_representatives(keys, mass, anchors, backend=backend)
    assert found.shape == (2, BLOCKS, 1, HEADS, DIM)
    for layer in range(2):
        for block in range(BLOCKS):
            count = last if block == BLOCKS - 1 else SIZE
            for head in range(HEADS):
                received = mass[layer, block, head].tolist()
                order = sorted(range(count), key=lambda i: -received[i])[:anchors]
                expected = keys[layer, block, head, order].double().mean(dim=0)
                assert_near(found[layer, block, 0, head], expected, 1e-6)


@each_backend
def test_heads_choose_their_own_anchors(backend: Backend) -> None:
    keys = torch.arange(8.0, device=DEVICE).view(1, 1, 8, 1).expand(1, 2, 8, 1)
    mass = torch.stack([torch.arange(8.0), -torch.arange(8.0)]).unsqueeze(0).to(DEVICE)
    assert anchor_representatives(keys, mass, 2, backend=backend).flatten().tolist() == [6.5, 0.5]


@each_backend
def test_of_keys_attended_alike_the_first_are_anchors(backend: Backend) -> None:
    keys = torch.arange(8.0, device=DEVICE).view(1, 1, 8, 1)
    mass = torch.tensor([0.0, 2, 1, 1, 2, 1, 1, 1], device=DEVICE).view(1, 1, 8)
    assert anchor_representatives(keys, mass, 4, backend=backend).item() == (1 + 4 + 2 + 3) / 4
    assert anchor_representatives(keys, torch.zeros_like(mass), 3, backend=backend).item() == (0 + 1 + 2) / 3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "size", "dim"), SIZES)
def test_kernels_equal_the_reference_on_pages(heads: int, size: int, dim: int, dtype: torch.dtype) -> None:
    keys = normal(4, 2, heads, size, dim, dtype=dtype)[1:, 0]  # read in place
    tokens = torch.tensor([size, size // 2 + 1, 1], device=DEVICE)
    for block, count in enumerate(tokens.tolist()):
        keys[block, :, count:] = NAN
    found = mean_representatives(keys, tokens, backend="triton")
    assert_near(found, mean_representatives(keys, tokens, backend="torch"), ROUNDING[dtype])

    real = torch.arange(size, device=DEVICE) < tokens[:, None]
    mass = normal(3, 1, size).abs().masked_fill(~real[:, None], float("-inf")).expand(3, heads, size)
    found = anchor_representatives(keys, mass, backend="triton")
    assert_near(found, anchor_representatives(keys, mass, backend="torch"), ROUNDING[dtype])


@each_backend
def test_keys_may_be_any_view(backend: Backend) -> None:
    keys = normal(3, HEADS, DIM, SIZE).mT
    tokens, mass = torch.full((3,), SIZE, device=DEVICE), normal(3, SIZE, HEADS).mT
    assert_near(mean_representatives(keys, tokens, backend=backend)[:, 0], keys.mean(dim=2), 1e-6)
    expected = anchor_representatives(keys.contiguous(), mass.contiguous(), backend="torch")
    assert_near(anchor_representatives(keys, mass, backend=backend), expected, 1e-6)


@each_backend
def test_no_blocks_have_no_representatives(backend: Backend) -> None:
    keys = normal(0, HEADS, SIZE, DIM)
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    assert mean_representatives(keys, none, backend=backend).shape == (0, 1, HEADS, DIM)
    assert anchor_representatives(keys, keys[..., 0], backend=backend).shape == (0, 1, HEADS, DIM)


def test_mass_of_another_shape_is_refused(keys: Tensor) -> None:
    with pytest.raises(ValueError, match="mass"):
        anchor_representatives(keys, torch.zeros(2, BLOCKS, HEADS, SIZE - 1))
