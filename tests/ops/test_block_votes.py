"""Votes of a window's queries, against a head and a token at a time in float64."""

import math

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, normal
from torch import Tensor

from actqkv_kernels import block_votes
from actqkv_kernels.backend import Backend

BACKENDS: list[Backend] = ["torch", "triton"]


def by_hand(queries: Tensor, representatives: Tensor, weights: Tensor) -> Tensor:
    (heads, window, dim), (blocks, kv_heads, _) = queries.shape, representatives.shape
    votes = torch.zeros(blocks, dtype=torch.float64)
    for head in range(heads):
        keys = representatives[:, head * kv_heads // heads].double().cpu()
        for token in range(window):
            scores = keys @ queries[head, token].double().cpu() / math.sqrt(dim)
            votes += float(weights[token]) * torch.softmax(scores, dim=0)
    return votes / heads


def shares(count: int) -> Tensor:
    drawn = normal(count, seed=7).abs()
    return drawn / drawn.sum()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [1, 3, 40])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 16), (12, 2, 64), (9, 3, 32), (6, 1, 8), (3, 3, 80)])
def test_equals_the_formula(heads: int, kv_heads: int, dim: int, window: int, backend: Backend) -> None:
    queries, representatives = normal(heads, window, dim) * 2, normal(70, kv_heads, dim, seed=1)
    found = block_votes(queries, representatives, shares(window), backend)
    torch.testing.assert_close(
        found.cpu().double(), by_hand(queries, representatives, shares(window)), atol=1e-6, rtol=1e-4
    )
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocks", [1, 64, 65, 4200])
def test_the_kernel_equals_the_reference(blocks: int, dtype: torch.dtype) -> None:
    """4,200 blocks are more than 64 parts of one tile."""
    queries, representatives = normal(4, 5, 32, dtype=dtype), normal(blocks, 2, 32, dtype=dtype, seed=1)
    found = block_votes(queries, representatives, shares(5), "triton")
    torch.testing.assert_close(found, block_votes(queries, representatives, shares(5), "torch"), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_scores_and_any_strides(backend: Backend) -> None:
    """A softmax in fp32 neither overflows nor divides by nothing; queries come as the model's projections lie."""
    queries = (normal(20, 6, 64) * 30).transpose(0, 1)
    representatives = normal(2, 50, 3, 64, seed=1)[1] * 10
    found = block_votes(queries, representatives, shares(20), backend)
    torch.testing.assert_close(
        found.cpu().double(), by_hand(queries, representatives, shares(20)), atol=1e-5, rtol=1e-3
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_block_has_no_vote_and_one_has_all(backend: Backend) -> None:
    queries = normal(4, 3, 16)
    assert block_votes(queries, normal(0, 2, 16), shares(3), backend).shape == (0,)
    assert float(block_votes(queries, normal(1, 2, 16), shares(3), backend)) == pytest.approx(1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_head_of_large_norm_has_one_vote(backend: Backend) -> None:
    """What a sum of products gets wrong: three heads see block 5, one that is louder sees block 9."""
    keys = torch.eye(16, device=DEVICE)[:, None]  # (16 blocks, 1 kv head, 16)
    queries = torch.zeros(4, 1, 16, device=DEVICE)
    queries[:3, 0, 5], queries[3, 0, 9] = 40, 4000
    assert int(block_votes(queries, keys, torch.ones(1, device=DEVICE), backend).argmax()) == 5


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        block_votes(normal(4, 3, 16), normal(5, 3, 16), shares(3))
    with pytest.raises(ValueError, match="3 tokens, and weights"):
        block_votes(normal(4, 3, 16), normal(5, 2, 16), shares(4))
