"""Activation bias, weights and probe-query: what their definition promises for any window."""

import pytest
import torch
from torch import Tensor

from actqkv_kernels import activation_probe
from actqkv_kernels.activation_probe.reference import activation_bias, activation_weights

SHAPES = [(2, 8), (7, 1), (33, 12), (128, 64)]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_are_a_distribution(shape: tuple[int, int]) -> None:
    weights = activation_weights(normal(1, *shape))
    assert weights.dtype == torch.float32
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))


@pytest.mark.parametrize("shape", SHAPES)
def test_biases_without_epsilon_sum_to_the_window(shape: tuple[int, int]) -> None:
    bias = activation_bias(normal(2, *shape), epsilon=0)
    torch.testing.assert_close(bias.sum(), torch.tensor(float(shape[0])))


def test_bias_is_the_formula() -> None:
    queries = normal(3, 9, 5).double()
    mean, variance = queries.mean(dim=0), queries.var(dim=0, unbiased=False)
    scale = variance + 0.01 * variance.mean()
    expected = [sum((q - m) ** 2 / s for q, m, s in zip(row, mean, scale, strict=True)) / 5 for row in queries]
    torch.testing.assert_close(activation_bias(queries.float()).double(), torch.stack(expected))


def test_order_of_tokens_does_not_matter() -> None:
    queries, order = normal(4, 3, 40, 8), torch.randperm(40, generator=torch.Generator().manual_seed(0))
    flat = queries.transpose(0, 1).flatten(1)
    torch.testing.assert_close(activation_weights(flat[order]), activation_weights(flat)[order])
    torch.testing.assert_close(activation_probe(queries[:, order]), activation_probe(queries))


def test_a_constant_added_to_all_changes_no_weight() -> None:
    queries = normal(5, 30, 16)
    moved = queries + 10 * normal(6, 16)
    torch.testing.assert_close(activation_weights(moved), activation_weights(queries), atol=1e-6, rtol=1e-4)


def test_the_odd_token_weighs_most() -> None:
    queries = normal(7, 20, 16) * 0.1
    queries[13] += 3
    assert int(activation_weights(queries).argmax()) == 13


def test_identical_queries_weigh_the_same() -> None:
    same = normal(8, 4, 1, 16).expand(4, 9, 16)
    weights = activation_weights(same.transpose(0, 1).reshape(9, 64))
    torch.testing.assert_close(weights, torch.full((9,), 1 / 9))
    torch.testing.assert_close(activation_probe(same), same.mean(dim=1))


def test_one_still_dimension_cannot_explode() -> None:
    queries = normal(9, 50, 8)
    queries[:, 3] = 1.0
    queries[0, 3] += 1e-7
    weights = activation_weights(queries)
    assert weights.isfinite().all()
    assert weights[0] < 0.5


def test_one_token_stands_for_itself() -> None:
    query = normal(10, 4, 1, 16)
    assert torch.equal(activation_probe(query), query[:, 0])


def test_heads_share_the_weights() -> None:
    queries = normal(11, 4, 20, 8)
    weights = activation_weights(queries.transpose(0, 1).flatten(1))
    expected = torch.einsum("w,hwd->hd", weights.double(), queries.double())
    torch.testing.assert_close(activation_probe(queries).double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    queries = normal(12, 4, 65, 16).to(dtype)
    probe = activation_probe(queries)
    assert probe.dtype == torch.float32
    assert torch.equal(probe, activation_probe(queries.float()))


@pytest.mark.parametrize("shape", [(4, 16), (4, 0, 16)])
def test_no_window_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="queries"):
        activation_probe(torch.zeros(shape))
