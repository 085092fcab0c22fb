"""The dynamic cut-off's shares: the total is exact, every share within its range, denser layers get no less."""

import random
from itertools import pairwise

import pytest
import torch

from actqkv_kernels import budget_shares


def check(densities: list[float], mean: int, most: int) -> list[int]:
    """The shares, after all that must hold for them."""
    shares = budget_shares(torch.tensor(densities, dtype=torch.float32), mean, most)
    assert shares.dtype == torch.int64
    assert shares.device.type == "cpu"
    blocks: list[int] = shares.tolist()
    capped = min(mean, most)
    assert sum(blocks) == capped * len(densities)
    assert all((capped + 1) // 2 <= share <= min(2 * capped, most) for share in blocks)
    by_density = [share for _, share in sorted(zip(densities, blocks, strict=True))]
    assert all(less <= more for less, more in pairwise(by_density))
    return blocks


@pytest.mark.parametrize("seed", range(300))
def test_any_densities(seed: int) -> None:
    draw = random.Random(seed)
    layers, mean = draw.randint(1, 40), draw.choice([0, 1, 2, 3, 7, 46, 60])
    most = draw.choice([0, 1, mean // 2, mean, mean + 1, 2 * mean, 1000])
    densities = [
        draw.choice([0.0, 1.0, 0.5, draw.random(), draw.random() ** 8, 0.99 + draw.random() / 100])
        for _ in range(layers)
    ]
    check(densities, mean, most)


@pytest.mark.parametrize("density", [0.0, 1e-30, 0.3, 1.0])
@pytest.mark.parametrize("mean", [0, 1, 5, 46])
def test_equal_densities_share_evenly(density: float, mean: int) -> None:
    assert check([density] * 30, mean, 100) == [mean] * 30


def test_shares_follow_density() -> None:
    assert check([0.5, 1.0, 1.5], 10, 100) == [5, 10, 15]
    assert check([0.0, 1.0], 10, 100) == [5, 15]
    assert check([0.0, 0.0, 0.0, 1.0], 10, 100) == [7, 7, 6, 20]


def test_both_ends_are_reached() -> None:
    blocks = check([1.0, 1.0] + [0.001] * 6, 10, 1000)
    assert max(blocks) == 20
    assert min(blocks) < 10


def test_fewer_blocks_than_the_budget_are_all_taken() -> None:
    assert check([0.1, 0.9, 0.5], 46, 7) == [7, 7, 7]


def test_is_deterministic_and_does_not_change_its_argument() -> None:
    densities = torch.rand(30, generator=torch.Generator().manual_seed(0))
    before = densities.clone()
    assert torch.equal(budget_shares(densities, 46, 300), budget_shares(densities, 46, 300))
    assert torch.equal(densities, before)


@pytest.mark.parametrize(("mean", "most"), [(-1, 3), (3, -1)])
def test_negative_blocks_are_refused(mean: int, most: int) -> None:
    with pytest.raises(ValueError, match="negative"):
        budget_shares(torch.ones(3), mean, most)


@pytest.mark.parametrize("shape", [(0,), (2, 2)])
def test_no_layers_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="densities"):
        budget_shares(torch.ones(shape), 3, 3)
