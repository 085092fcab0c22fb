"""Mean and anchor representatives, against loops in float64 over keys that are really there."""

import pytest
import torch
from torch import Tensor

from actqkv_kernels import anchor_representatives, mean_representatives

BLOCKS, HEADS, SIZE, DIM = 5, 3, 8, 4


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def keys() -> Tensor:
    return normal(1, 2, BLOCKS, HEADS, SIZE, DIM)  # two layers at once


@pytest.mark.parametrize("last", [1, 3, SIZE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mean_of_the_real_keys(keys: Tensor, last: int, dtype: torch.dtype) -> None:
    keys = keys.to(dtype)
    keys[:, -1, :, last:] = 1e6  # what stands behind the last token must not count
    tokens = torch.tensor([SIZE] * (BLOCKS - 1) + [last])
    found = mean_representatives(keys, tokens)
    assert found.shape == (2, BLOCKS, 1, HEADS, DIM)
    assert found.dtype == dtype
    for block, count in enumerate(tokens.tolist()):
        expected = keys[:, block, :, :count].double().mean(dim=2).to(dtype)
        torch.testing.assert_close(found[:, block, 0], expected)


@pytest.mark.parametrize("anchors", [1, 4, SIZE, SIZE + 3])
@pytest.mark.parametrize("last", [1, 3, SIZE])
def test_mean_of_the_most_attended_keys(keys: Tensor, anchors: int, last: int) -> None:
    keys[:, -1, :, last:] = 1e6
    mass = normal(2, 2, BLOCKS, HEADS, SIZE).abs()
    mass[:, -1, :, last:] = float("-inf")
    found = anchor_representatives(keys, mass, anchors)
    assert found.shape == (2, BLOCKS, 1, HEADS, DIM)
    for layer in range(2):
        for block in range(BLOCKS):
            count = last if block == BLOCKS - 1 else SIZE
            for head in range(HEADS):
                received = mass[layer, block, head].tolist()
                order = sorted(range(count), key=lambda i: -received[i])[:anchors]
                expected = keys[layer, block, head, order].double().mean(dim=0).float()
                torch.testing.assert_close(found[layer, block, 0, head], expected)


def test_heads_choose_their_own_anchors() -> None:
    keys = torch.arange(8.0).view(1, 1, 8, 1).expand(1, 2, 8, 1)
    mass = torch.stack([torch.arange(8.0), -torch.arange(8.0)]).unsqueeze(0)
    assert anchor_representatives(keys, mass, 2).flatten().tolist() == [6.5, 0.5]


def test_mass_of_another_shape_is_refused(keys: Tensor) -> None:
    with pytest.raises(ValueError, match="mass"):
        anchor_representatives(keys, torch.zeros(2, BLOCKS, HEADS, SIZE - 1))
