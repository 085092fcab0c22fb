"""Scores of blocks and the density of a layer's scores, against an independent computation in float64."""

import math

import pytest
import torch
from torch import Tensor

from actqkv_kernels import block_scores, density


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def expected_scores(probe: Tensor, representatives: Tensor, kind: str) -> Tensor:
    """Every kv head repeated for the query heads of its group, in float64."""
    keys = representatives.double().repeat_interleave(probe.shape[0] // representatives.shape[2], dim=2)
    dot = torch.einsum("hd,nrhd->nr", probe.double(), keys)
    if kind == "cosine":
        scores = dot / (keys.flatten(2).norm(dim=2) * probe.double().norm())
    else:
        scores = dot / math.sqrt(probe.shape[1])
    return scores.max(dim=1).values


@pytest.mark.parametrize("kind", ["dot", "cosine"])
@pytest.mark.parametrize("reps", [1, 3])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 16), (8, 2, 64), (9, 3, 32), (6, 1, 8)])
def test_equals_the_formula(kind: str, reps: int, heads: int, kv_heads: int, dim: int) -> None:
    probe, representatives = normal(1, heads, dim), normal(2, 11, reps, kv_heads, dim)
    scores = block_scores(probe, representatives, kind)  # type: ignore[arg-type]
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), expected_scores(probe, representatives, kind), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["dot", "cosine"])
def test_bfloat16_is_computed_in_float32(kind: str) -> None:
    probe, representatives = normal(3, 4, 16), normal(4, 9, 1, 2, 16).bfloat16()
    assert torch.equal(
        block_scores(probe, representatives, kind),  # type: ignore[arg-type]
        block_scores(probe, representatives.float(), kind),  # type: ignore[arg-type]
    )


def test_cosine_is_one_for_the_probe_itself_and_knows_no_length() -> None:
    probe = normal(5, 4, 16)
    blocks = torch.stack([probe * 7, -probe * 0.1, probe * 1e-3]).unsqueeze(1)
    torch.testing.assert_close(block_scores(probe, blocks, "cosine"), torch.tensor([1.0, -1.0, 1.0]))


@pytest.mark.parametrize("kind", ["dot", "cosine"])
def test_nothing_to_compare_is_zero(kind: str) -> None:
    zero = torch.zeros(3, 1, 2, 8)
    assert torch.equal(block_scores(normal(6, 4, 8), zero, kind), torch.zeros(3))  # type: ignore[arg-type]
    assert block_scores(normal(6, 4, 8), zero[:0], kind).shape == (0,)  # type: ignore[arg-type]


@pytest.mark.parametrize(("heads", "dim"), [(3, 8), (4, 4)])
def test_shapes_that_do_not_fit_are_refused(heads: int, dim: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        block_scores(torch.zeros(heads, dim), torch.zeros(5, 1, 2, 8))


def test_density_is_the_normalised_entropy() -> None:
    scores = normal(7, 50) * 3
    p = torch.softmax(scores.double(), dim=0)
    assert float(density(scores)) == pytest.approx(float(-(p * p.log()).sum() / math.log(50)), abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", [0.0, 1.0, 100.0, 1e6])
def test_density_is_within_0_and_1(seed: int, spread: float) -> None:
    assert 0 <= float(density(normal(seed, 2 + seed * 100) * spread)) <= 1


def test_density_of_one_winner_and_of_equals() -> None:
    winner = torch.zeros(64)
    winner[5] = 100
    assert float(density(winner)) == pytest.approx(0, abs=1e-6)
    assert float(density(torch.full((64,), -3.5))) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("count", [0, 1])
def test_density_of_no_choice_is_zero(count: int) -> None:
    assert float(density(torch.ones(count))) == 0


def test_flatter_scores_are_denser() -> None:
    scores = normal(8, 100)
    values = [float(density(scores * factor)) for factor in (0.1, 1, 3, 10, 30)]
    assert values == sorted(values, reverse=True)
