"""The dynamic cut-off's shares: the total is exact, every share within its range, denser layers get no less."""

import random
from itertools import pairwise

import pytest
import torch
from kernel_cases import DEVICE

from actqkv_kernels import budget_shares
from actqkv_kernels.backend import BackendUnavailable


def check(densities: list[float], mean: int, most: int) -> list[int]:
    """The shares, after all that must hold for them; the kernel's are the same."""
    given = torch.tensor(densities, dtype=torch.float32, device=DEVICE)
    shares = budget_shares(given, mean, most, backend="torch")
    assert shares.dtype == torch.int64
    assert shares.device == given.device
    assert torch.equal(budget_shares(given, mean, most, backend="triton"), shares)
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


@pytest.mark.parametrize("seed", range(20))
def test_is_proportion_within_the_range(seed: int) -> None:
    draw = random.Random(seed)
    densities = [draw.random() ** draw.choice([1, 8]) + 1e-9 for _ in range(draw.randint(1, 60))]
    mean = draw.randint(1, 60)
    low, high = (mean + 1) // 2, 2 * mean

    def at(rate: float) -> list[float]:
        return [min(max(rate * density, low), high) for density in densities]

    least, most = 0.0, 1e14
    for _ in range(200):  # there is one rate at which all is shared out
        middle = (least + most) / 2
        least, most = (middle, most) if sum(at(middle)) < mean * len(densities) else (least, middle)
    found = check(densities, mean, 1000)
    assert all(abs(share - exact) < 1.001 for share, exact in zip(found, at(least), strict=True))


@pytest.mark.parametrize("layers", [1, 2, 33, 128])
def test_kernel_shares_as_the_reference(layers: int) -> None:
    draw = torch.Generator().manual_seed(layers)
    uniform = torch.rand(layers, generator=draw)
    for densities in (
        uniform,
        uniform.bfloat16(),  # many are equal
        10.0 ** (600 * uniform.double() - 300),
        (uniform > 0.5).float(),
        torch.zeros(layers),
        torch.where(uniform > 0.3, uniform, float("nan")),
        torch.where(uniform > 0.3, uniform, float("inf")),
        uniform - 0.5,
    ):
        for mean, most in ((46, 100_000), (46, 60), (3, 4), (100_000, 100_000)):
            expected = budget_shares(densities.to(DEVICE), mean, most, backend="torch")
            assert int(expected.sum()) == min(mean, most) * layers
            assert int(expected.min()) >= 0
            assert int(expected.max()) <= min(2 * mean, most)
            assert torch.equal(budget_shares(densities.to(DEVICE), mean, most, backend="triton"), expected)


def test_kernel_takes_a_thousand_layers() -> None:
    densities = torch.rand(1024, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    shares = budget_shares(densities, 100_000, 100_000, backend="triton")
    assert torch.equal(shares, budget_shares(densities, 100_000, 100_000, backend="torch"))


def test_more_than_64_bits_hold_is_not_for_the_kernel() -> None:
    for layers, mean in ((1025, 1), (2, 2**32)):
        with pytest.raises(BackendUnavailable, match="layers"):
            budget_shares(torch.ones(layers, device=DEVICE), mean, mean, backend="triton")
        shares = budget_shares(torch.ones(layers, device=DEVICE), mean, mean, backend="torch")
        assert shares.tolist() == [mean] * layers
    largest = budget_shares(torch.tensor([1.0, 1e-3], device=DEVICE), 2**32 - 1, 2**40, backend="triton")
    assert largest.tolist() == [2**33 - 2 - 2**31, 2**31]


@pytest.mark.parametrize(("mean", "most"), [(-1, 3), (3, -1)])
def test_negative_blocks_are_refused(mean: int, most: int) -> None:
    with pytest.raises(ValueError, match="negative"):
        budget_shares(torch.ones(3), mean, most)


@pytest.mark.parametrize("shape", [(0,), (2, 2)])
def test_no_layers_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="densities"):
        budget_shares(torch.ones(shape), 3, 3)
