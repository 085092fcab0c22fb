"""Dimensions and arithmetic, against counting."""

import pytest

from actqkv_cli.model.shape import Shape, causal_pairs, windowed_pairs

SHAPE = Shape(
    hidden=8, intermediate=20, layers=3, heads=4, kv_heads=2, head_dim=2, vocabulary=50, window=64, tied=False
)


def test_parameters_are_those_of_the_matrices() -> None:
    query, key, value, output = 8 * 8, 8 * 4, 8 * 4, 8 * 8
    feed_forward = 3 * 8 * 20
    assert SHAPE.layer_parameters == query + key + value + output + feed_forward
    assert SHAPE.parameters == 3 * SHAPE.layer_parameters + 2 * 50 * 8


def test_a_product_takes_two_operations_per_parameter_and_token() -> None:
    assert SHAPE.product_flops(7) == 2 * 7 * 3 * SHAPE.layer_parameters


def test_attention_takes_two_operations_per_dimension_for_score_and_value() -> None:
    assert SHAPE.attention_flops(1) == 3 * 4 * (2 * 2 + 2 * 2)  # layers, heads, two products of two dimensions


@pytest.mark.parametrize("tokens", [0, 1, 2, 7, 64])
def test_causal_pairs(tokens: int) -> None:
    assert causal_pairs(tokens) == sum(1 for query in range(tokens) for key in range(tokens) if key <= query)


@pytest.mark.parametrize(("tokens", "window", "budget"), [(1, 4, 8), (10, 4, 0), (10, 4, 5), (64, 8, 16), (63, 8, 16)])
def test_windowed_pairs(tokens: int, window: int, budget: int) -> None:
    def attended(query: int) -> int:
        start = query // window * window
        return min(start, budget) + query - start + 1

    assert windowed_pairs(tokens, window, budget) == sum(map(attended, range(tokens)))


def test_with_a_budget_that_covers_the_document_windows_attend_to_all() -> None:
    assert windowed_pairs(100, 8, 100) == causal_pairs(100)
