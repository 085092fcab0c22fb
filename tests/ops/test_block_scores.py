"""Scores of blocks and the density of a layer's scores, against an independent computation in float64."""

import math
from typing import Literal

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, normal
from torch import Tensor

from actqkv_kernels import block_scores, density
from actqkv_kernels.backend import Backend, BackendUnavailable
from actqkv_kernels.quantization import Bits, Quantized, dequantize_rows, quantize_rows

Kind = Literal["dot", "cosine"]
KINDS: list[Kind] = ["dot", "cosine"]
BACKENDS: list[Backend] = ["torch", "triton"]
NAN = float("nan")


def assert_close(found: Tensor, expected: Tensor) -> None:
    """As near as arithmetic in float32 can be: a score is a sum that may well end near zero."""
    torch.testing.assert_close(found.double(), expected.double(), atol=2e-5, rtol=1e-5)


def expected_scores(probe: Tensor, representatives: Tensor, kind: Kind) -> Tensor:
    """Every kv head repeated for the query heads of its group, in float64."""
    keys = representatives.double().repeat_interleave(probe.shape[0] // representatives.shape[2], dim=2)
    dot = torch.einsum("hd,nrhd->nr", probe.double(), keys)
    if kind == "cosine":
        scores = dot / (keys.flatten(2).norm(dim=2) * probe.double().norm())
    else:
        scores = dot / math.sqrt(probe.shape[1])
    return scores.max(dim=1).values


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reps", [1, 3])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 16), (8, 2, 64), (9, 3, 32), (6, 1, 8), (7, 7, 256)])
def test_equals_the_formula(heads: int, kv_heads: int, dim: int, reps: int, kind: Kind, backend: Backend) -> None:
    probe, representatives = normal(heads, dim), normal(11, reps, kv_heads, dim, seed=1)
    scores = block_scores(probe, representatives, kind, backend)
    assert scores.dtype == torch.float32
    assert_close(scores, expected_scores(probe, representatives, kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "kv_heads", "group"), [(64, 3, 3), (80, 2, 1), (96, 8, 4), (128, 8, 2), (256, 1, 8)])
def test_the_kernel_equals_the_reference(dim: int, kv_heads: int, group: int, dtype: torch.dtype, kind: Kind) -> None:
    probe = normal(kv_heads * group, dim)
    for blocks, reps in ((1, 1), (2, 3), (31, 1)):
        representatives = normal(blocks, reps, kv_heads, dim, dtype=dtype, seed=blocks)
        found = block_scores(probe, representatives, kind, "triton")
        assert_close(found, block_scores(probe, representatives, kind, "torch"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("dim", "kv_heads", "group"), [(64, 3, 3), (80, 2, 1), (96, 24, 1), (128, 8, 4), (256, 1, 8)])
def test_numbers_of_few_bits(dim: int, kv_heads: int, group: int, bits: Bits, kind: Kind) -> None:
    probe = normal(kv_heads * group, dim)
    for blocks, reps in ((1, 1), (2, 3), (31, 1)):
        few = quantize_rows(normal(blocks, reps, kv_heads, dim, seed=blocks) + 1, bits)
        expected = expected_scores(probe, dequantize_rows(few, torch.float64), kind)
        for backend in BACKENDS:
            assert_close(block_scores(probe, few, kind, backend), expected)


@pytest.mark.parametrize(("blocks", "reps"), [(63, 3), (500, 1), (4100, 1)])
def test_many_blocks(blocks: int, reps: int) -> None:
    """In the end so many that a program takes more than the fewest rows."""
    probe, representatives = normal(4, 16).bfloat16(), normal(blocks, reps, 2, 16, dtype=torch.bfloat16)
    found = block_scores(probe, representatives, "dot", "triton")
    assert_close(found, expected_scores(probe, representatives, "dot"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_the_blocks(kind: Kind, backend: Backend) -> None:
    """Nothing beside it is read: not the blocks before and after, nor what lies between two of them."""
    probe, representatives = normal(4, 64), normal(20, 2, 2, 64)
    few = quantize_rows(representatives, 8)

    def spread(x: Tensor) -> Tensor:
        apart = torch.full((40, 3, *x.shape[1:]), NAN if x.is_floating_point() else 255, dtype=x.dtype, device=DEVICE)
        apart[10:30, 1] = x
        return apart[10:30, 1]

    alone = block_scores(probe, representatives, kind, backend)
    assert_close(block_scores(probe, spread(representatives), kind, backend), alone)
    assert_close(block_scores(probe, representatives[5:9], kind, backend), alone[5:9])
    alone = block_scores(probe, few, kind, backend)
    apart = Quantized(spread(few.codes), spread(few.scales), 8)
    assert_close(block_scores(probe, apart, kind, backend), alone)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_computed_in_float32(kind: Kind, backend: Backend) -> None:
    probe, representatives = normal(4, 16), normal(9, 1, 2, 16, dtype=torch.bfloat16)
    of_few_bits = block_scores(probe, representatives, kind, backend)
    assert_close(of_few_bits, block_scores(probe, representatives.float(), kind, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_cosine_is_one_for_the_probe_itself_and_knows_no_length(backend: Backend) -> None:
    probe = normal(4, 16)
    blocks = torch.stack([probe * 7, -probe * 0.1, probe * 1e-3]).unsqueeze(1)
    assert_close(block_scores(probe, blocks, "cosine", backend), torch.tensor([1.0, -1.0, 1.0], device=DEVICE))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_compare_is_zero(kind: Kind, backend: Backend) -> None:
    zero = torch.zeros(3, 1, 2, 8, device=DEVICE)
    assert block_scores(normal(4, 8), zero, kind, backend).tolist() == [0, 0, 0]
    assert block_scores(normal(4, 8), zero[:0], kind, backend).shape == (0,)


@pytest.mark.parametrize(("heads", "dim"), [(3, 8), (4, 4)])
def test_shapes_that_do_not_fit_are_refused(heads: int, dim: int) -> None:
    representatives = torch.zeros(5, 1, 2, 8)
    for given in (representatives, quantize_rows(representatives, 8), quantize_rows(representatives, 4)):
        with pytest.raises(ValueError, match="does not fit"):
            block_scores(torch.zeros(heads, dim), given)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kind"):
        block_scores(normal(2, 8), normal(5, 1, 2, 8), "angle")  # type: ignore[arg-type]


def test_the_kernel_that_was_asked_for_runs_or_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    probe, representatives = normal(2, 8), normal(5, 2, 2, 8)
    with pytest.raises(BackendUnavailable, match="together"):
        block_scores(probe, representatives.transpose(1, 2), backend="triton")
    with pytest.raises(BackendUnavailable, match="float64"):
        block_scores(probe, representatives.double(), backend="triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendUnavailable, match="block_scores"):
        block_scores(probe.cpu(), representatives.cpu(), backend="triton")
    with pytest.raises(BackendUnavailable, match="density"):
        density(torch.zeros(3), "triton")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [2, 3, 50, 1000, 8193, 20_000])
@pytest.mark.parametrize("offset", [0, -1e4, 1e4])
def test_density_is_the_normalised_entropy(offset: float, count: int, backend: Backend) -> None:
    scores = normal(count) * 3 + offset
    p = torch.softmax(scores.double(), dim=0)
    found = density(scores, backend)
    assert found.shape == ()
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(-(p * p.log()).sum() / math.log(count)), abs=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", [0.0, 1.0, 100.0, 1e6])
def test_density_is_within_0_and_1(spread: float, seed: int, backend: Backend) -> None:
    assert 0 <= float(density(normal(2 + seed * 100, seed=seed) * spread, backend)) <= 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_density_of_one_winner_and_of_equals(backend: Backend) -> None:
    winner = torch.zeros(64, device=DEVICE)
    winner[5] = 100
    assert float(density(winner, backend)) == pytest.approx(0, abs=1e-6)
    assert float(density(torch.full((64,), -3.5, device=DEVICE), backend)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_density_takes_what_can_never_be_chosen_for_nothing(backend: Backend) -> None:
    scores = torch.full((64,), -float("inf"), device=DEVICE)
    scores[3:7] = 2.0
    assert float(density(scores, backend)) == pytest.approx(math.log(4) / math.log(64), abs=1e-6)
    scores[20] = NAN
    assert math.isnan(float(density(scores, backend)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [0, 1])
def test_density_of_no_choice_is_zero(count: int, backend: Backend) -> None:
    assert float(density(torch.ones(count, device=DEVICE), backend)) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_flatter_scores_are_denser(backend: Backend) -> None:
    scores = normal(100)
    values = [float(density(scores * factor, backend)) for factor in (0.1, 1, 3, 10, 30)]
    assert values == sorted(values, reverse=True)
