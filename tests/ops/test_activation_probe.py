"""Activation bias, weights and probe-query: what their definition promises for any window, and the kernel."""

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, assert_near, normal
from torch import Tensor

from actqkv_kernels import activation_probe
from actqkv_kernels.activation_probe import activation_weights as weights_of
from actqkv_kernels.activation_probe.reference import activation_bias, activation_weights
from actqkv_kernels.backend import Backend, BackendUnavailable

SHAPES = [(2, 8), (7, 1), (33, 12), (128, 64)]
each_backend = pytest.mark.parametrize("backend", ["torch", "triton"])


def exact_probe(queries: Tensor) -> Tensor:
    """The formula in float64, a token at a time."""
    flat = queries.double().transpose(0, 1).flatten(1)
    variance = flat.var(dim=0, unbiased=False)
    scale = variance + 0.01 * variance.mean()
    bias = torch.stack([((query - flat.mean(dim=0)) ** 2 / scale).mean() for query in flat])
    return (bias[:, None] * flat).sum(dim=0).div(bias.sum()).view(queries.shape[0], -1)


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_are_a_distribution(shape: tuple[int, int]) -> None:
    weights = activation_weights(normal(*shape))
    assert weights.dtype == torch.float32
    assert (weights >= 0).all()
    assert float(weights.sum()) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_biases_without_epsilon_sum_to_the_window(shape: tuple[int, int]) -> None:
    assert float(activation_bias(normal(*shape), epsilon=0).sum()) == pytest.approx(shape[0], rel=1e-5)


def test_bias_is_the_formula() -> None:
    queries = normal(9, 5).double()
    mean, variance = queries.mean(dim=0), queries.var(dim=0, unbiased=False)
    scale = variance + 0.01 * variance.mean()
    expected = [sum((q - m) ** 2 / s for q, m, s in zip(row, mean, scale, strict=True)) / 5 for row in queries]
    torch.testing.assert_close(activation_bias(queries.float()).double(), torch.stack(expected))


@each_backend
def test_order_of_tokens_does_not_matter(backend: Backend) -> None:
    queries, order = normal(3, 40, 8), torch.randperm(40, generator=torch.Generator().manual_seed(0))
    flat = queries.transpose(0, 1).flatten(1)
    torch.testing.assert_close(activation_weights(flat[order]), activation_weights(flat)[order])
    found = activation_probe(queries[:, order], backend=backend)
    torch.testing.assert_close(found, activation_probe(queries, backend=backend))


def test_a_constant_added_to_all_changes_no_weight() -> None:
    queries = normal(30, 16)
    moved = queries + 10 * normal(16, seed=1)
    torch.testing.assert_close(activation_weights(moved), activation_weights(queries), atol=1e-6, rtol=1e-4)


@each_backend
def test_a_constant_added_to_all_is_added_to_the_probe(backend: Backend) -> None:
    queries, constant = normal(2, 300, 16), 10 * normal(2, 1, 16, seed=1)
    expected = exact_probe(queries) + constant[:, 0]
    assert_near(activation_probe(queries + constant, backend=backend), expected, 1e-6)


@each_backend
def test_a_first_token_far_from_all_others_costs_no_precision(backend: Backend) -> None:
    queries = normal(2, 300, 16)
    queries[:, 0] += 1000
    assert_near(activation_probe(queries, backend=backend), exact_probe(queries), 1e-5)


@each_backend
def test_the_odd_token_weighs_most(backend: Backend) -> None:
    queries = normal(1, 20, 16) * 0.1
    queries[:, 13] += 3
    assert int(activation_weights(queries[0]).argmax()) == 13
    assert (activation_probe(queries, backend=backend) > 1).all()


@each_backend
@pytest.mark.parametrize("size", [1.0, 1e4, 1e-18, 0.0])
def test_identical_queries_weigh_the_same(backend: Backend, size: float) -> None:
    same = size * normal(4, 1, 16).expand(4, 9, 16)
    weights = activation_weights(same.transpose(0, 1).reshape(9, 64))
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 9))
    torch.testing.assert_close(activation_probe(same, backend=backend), same[:, 0], atol=0, rtol=1e-6)


@each_backend
def test_one_still_dimension_cannot_explode(backend: Backend) -> None:
    queries = normal(1, 50, 8)
    queries[..., 3] = 1.0
    queries[0, 0, 3] += 1e-7
    weights = activation_weights(queries[0])
    assert weights.isfinite().all()
    assert weights[0] < 0.5
    assert_near(activation_probe(queries, backend=backend), exact_probe(queries), 1e-5)


@each_backend
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_token_stands_for_itself(backend: Backend, dtype: torch.dtype) -> None:
    query = normal(4, 1, 16, dtype=dtype)
    probe = activation_probe(query, backend=backend)
    assert torch.equal(probe, query[:, 0].float())
    assert probe.data_ptr() != query.data_ptr()


@pytest.mark.parametrize("window", [1, 9])
def test_the_weights_of_a_window_are_those_of_its_probe(window: int) -> None:
    queries = normal(4, window, 16)
    torch.testing.assert_close(weights_of(queries) @ queries, activation_probe(queries, "torch"))


@each_backend
def test_heads_share_the_weights(backend: Backend) -> None:
    queries = normal(4, 20, 8)
    weights = activation_weights(queries.transpose(0, 1).flatten(1))
    expected = torch.einsum("w,hwd->hd", weights.double(), queries.double())
    assert_near(activation_probe(queries, backend=backend), expected, 1e-6)


@each_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(backend: Backend, dtype: torch.dtype) -> None:
    queries = normal(4, 65, 16, dtype=dtype)
    probe = activation_probe(queries, backend=backend)
    assert probe.dtype == torch.float32
    assert torch.equal(probe, activation_probe(queries.float(), backend=backend))


@each_backend
@pytest.mark.parametrize("window", [1, 2, 3, 33, 100])
@pytest.mark.parametrize(("heads", "dim"), [(1, 64), (2, 256), (3, 96), (9, 64), (12, 80), (32, 128)])
def test_is_the_formula(backend: Backend, window: int, heads: int, dim: int) -> None:
    dtype = DTYPES[(window + heads) % 3]
    queries = (normal(heads, window, dim) + normal(heads, 1, dim, seed=1)).to(dtype)
    expected = exact_probe(queries) if window > 1 else queries[:, 0].double()
    assert_near(activation_probe(queries, backend=backend), expected, 1e-5)


@pytest.mark.parametrize("window", [600, 4500])
def test_kernel_shares_long_windows_out(window: int) -> None:
    queries = normal(1, window, 48) + 3
    assert_near(activation_probe(queries, backend="triton"), exact_probe(queries), 1e-5)


@each_backend
@pytest.mark.parametrize("dtype", DTYPES)
def test_queries_may_be_any_view_of_whole_rows(backend: Backend, dtype: torch.dtype) -> None:
    fused = normal(33, 10, 96, dtype=dtype)  # tokens of queries, keys and values, as a projection leaves them
    queries = fused[1:, 2:7].transpose(0, 1)
    assert_near(activation_probe(queries, backend=backend), exact_probe(queries), 1e-5)


def test_rows_with_gaps_are_not_for_the_kernel() -> None:
    queries = normal(2, 5, 32)[..., ::2]
    with pytest.raises(BackendUnavailable, match="not contiguous"):
        activation_probe(queries, backend="triton")
    assert_near(activation_probe(queries, backend="torch"), exact_probe(queries), 1e-5)


@pytest.mark.parametrize("shape", [(4, 16), (4, 0, 16)])
def test_no_window_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="queries"):
        activation_probe(torch.zeros(shape, device=DEVICE))
