"""Bounds of a block's keys, against loops in float64, and that they really are bounds."""

import math

import pytest
import torch
from torch import Tensor

from actqkv_kernels import bound_scores, key_bounds

SHAPES = [(4, 4, 16), (8, 2, 64), (9, 3, 32), (6, 1, 8)]  # heads, kv heads, head dim
BLOCKS, SIZE = 5, 8


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def blocks_of_keys(last: int, kv_heads: int, dim: int) -> tuple[Tensor, Tensor]:
    """Keys `(N, Hkv, b, d)`, of the last block only `last` real, and how many are real `(N,)`."""
    keys = normal(1, BLOCKS, kv_heads, SIZE, dim)
    keys[-1, :, last:] = torch.tensor([1e6, -1e6]).repeat(dim // 2)  # what stands behind the last token must not count
    return keys, torch.tensor([SIZE] * (BLOCKS - 1) + [last])


def products(queries: Tensor, keys: Tensor, count: int) -> Tensor:
    """q . k / sqrt(d) of each query head with the real keys of a block `(Hkv, b, d)`: `(H, W, count)` in float64."""
    group = len(queries) // len(keys)
    own = keys[:, :count].double().repeat_interleave(group, dim=0)
    return queries.double() @ own.mT / math.sqrt(queries.shape[2])


@pytest.mark.parametrize("last", [1, 3, SIZE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_least_and_greatest_of_the_real_keys(last: int, dtype: torch.dtype) -> None:
    keys, tokens = blocks_of_keys(last, 3, 4)
    keys = torch.stack([keys, -2 * keys]).to(dtype)  # two layers at once
    found = key_bounds(keys, tokens)
    assert found.shape == (2, BLOCKS, 2, 3, 4)
    assert found.dtype == dtype
    for layer in range(2):
        for block, count in enumerate(tokens.tolist()):
            real = keys[layer, block, :, :count]
            assert torch.equal(found[layer, block, 0], real.min(dim=1).values)
            assert torch.equal(found[layer, block, 1], real.max(dim=1).values)


@pytest.mark.parametrize("last", [1, 5, SIZE])
@pytest.mark.parametrize("window", [1, 7])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), SHAPES)
def test_equals_the_formula(heads: int, kv_heads: int, dim: int, window: int, last: int) -> None:
    """Channel by channel the greater of q m and q M, as the paper has it, in float64."""
    keys, tokens = blocks_of_keys(last, kv_heads, dim)
    bounds, queries = key_bounds(keys, tokens), normal(2, heads, window, dim)
    found = bound_scores(queries, bounds)
    assert found.dtype == torch.float32
    least, greatest = bounds.double().repeat_interleave(heads // kv_heads, dim=2).unbind(dim=1)  # (N, H, d)
    for block in range(BLOCKS):
        best = torch.maximum(queries.double() * least[block, :, None], queries.double() * greatest[block, :, None])
        expected = float(best.sum(dim=2).mean(dim=1).sum() / math.sqrt(dim))
        assert float(found[block]) == pytest.approx(expected, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("last", [1, SIZE])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), SHAPES)
def test_no_key_is_above_its_bound(heads: int, kv_heads: int, dim: int, last: int) -> None:
    """A query's bound is at least its product with any key; of one key alone it is that very product."""
    keys, tokens = blocks_of_keys(last, kv_heads, dim)
    for seed in range(10):
        queries = 3 * normal(seed, heads, 1, dim)
        found = bound_scores(queries, key_bounds(keys, tokens)).double()
        for block, count in enumerate(tokens.tolist()):
            summed = products(queries, keys[block], count).sum(dim=0)[0]  # over heads, of each key
            largest = products(queries, keys[block], count).max(dim=2).values.sum()  # each head's own best key
            assert float(found[block]) >= float(summed.max()) - 1e-4
            assert float(found[block]) >= float(largest) - 1e-4
            if count == 1:
                assert float(found[block]) == pytest.approx(float(summed[0]), rel=1e-5, abs=1e-4)


def test_bfloat16_is_computed_in_float32() -> None:
    queries, bounds = normal(3, 4, 5, 16), normal(4, 9, 2, 2, 16).bfloat16()
    assert torch.equal(bound_scores(queries, bounds), bound_scores(queries, bounds.float()))


def test_queries_need_not_be_contiguous() -> None:
    """As they come from a model: `(1, W, H, d)`, transposed."""
    queries, bounds = normal(5, 7, 4, 16).transpose(0, 1), normal(6, 3, 2, 2, 16)
    torch.testing.assert_close(bound_scores(queries, bounds), bound_scores(queries.contiguous(), bounds))


def test_no_blocks_no_scores() -> None:
    assert bound_scores(normal(7, 4, 1, 8), torch.zeros(0, 2, 2, 8)).shape == (0,)


@pytest.mark.parametrize(("heads", "dim"), [(3, 8), (4, 4)])
def test_shapes_that_do_not_fit_are_refused(heads: int, dim: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        bound_scores(torch.zeros(heads, 1, dim), torch.zeros(5, 2, 2, 8))
