"""The best blocks of a row, against Python's sort."""

import math

import pytest
import torch
from kernel_cases import DEVICE, normal
from torch import Tensor

from actqkv_kernels import block_scores, density, top_blocks
from actqkv_kernels.backend import Backend, BackendUnavailable

BACKENDS: list[Backend] = ["torch", "triton"]
INF, NAN = float("inf"), float("nan")
ROWS = {
    "one": [0.5],
    "a NaN alone": [NAN],
    "equal": [1.5] * 40,
    "signs of zero": [-0.0, 0.0, -1.0, 0.0, -0.0, 1e-45, -1e-45],
    "infinities": [-INF, 3.0, INF, -INF, -3.0, INF, 3.4e38, -3.4e38],
    "nothing but NaN and -inf": [NAN, -INF, NAN, -INF, NAN],
    "a NaN of either sign": [-NAN, 1.0, NAN, -INF, 2.0],
    "normal": normal(333).tolist(),
    "negative": (-normal(64).abs() - 100).tolist(),
    "ties": normal(700, seed=1).round().tolist(),
    "ties in several tiles": normal(5000, seed=2).round().tolist(),
    "mixed": [[NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0][i * i % 7] for i in range(100)],
}


def expected(scores: list[float], count: int) -> list[int]:
    ranked = sorted(range(len(scores)), key=lambda i: (math.isnan(scores[i]), -scores[i], i))
    return sorted(ranked[:count])


def row(scores: list[float]) -> Tensor:
    return torch.tensor(scores, device=DEVICE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ROWS)
def test_the_best_by_score_then_by_id(name: str, backend: Backend) -> None:
    scores = ROWS[name]
    for count in sorted({0, 1, 2, 3, len(scores) // 3, len(scores) - 1, len(scores)}):
        found = top_blocks(row(scores), count, backend=backend)
        assert found.ids.dtype == found.count.dtype == torch.int32
        assert found.ids.device == found.count.device == row(scores).device
        assert found.count.shape == ()
        if count <= len(scores):
            assert found.ids.tolist() == expected(scores, count)
            assert int(found.count) == count


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hundred_thousand_scores(backend: Backend) -> None:
    scores = normal(100_000, seed=3)
    scores[::5] = scores[0]  # so many ties that the cut runs through them
    above = int((scores > scores[0]).sum())
    for count in (46, above + 777):
        assert top_blocks(scores, count, backend=backend).ids.tolist() == expected(scores.tolist(), count)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(20))
def test_any_row(seed: int, backend: Backend) -> None:
    draw = torch.Generator().manual_seed(seed)
    n, count, first, max_count = (int(torch.randint(high, (), generator=draw)) for high in (300, 200, 1000, 200))
    scores = torch.randn(n, generator=draw).mul(seed).round().div(7)
    for value in (NAN, INF, -INF):
        scores[torch.rand(n, generator=draw) < 0.05] = value
    found = top_blocks(scores.to(DEVICE), count, first, max_count, backend)
    taken = min(count, n, max_count)
    assert int(found.count) == taken
    assert found.ids.tolist() == [first + i for i in expected(scores.tolist(), taken)] + [-1] * (max_count - taken)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("count", [-1, 0, 1, 5, 16, 17, 100])
def test_count_on_the_device(count: int, dtype: torch.dtype, backend: Backend) -> None:
    scores = normal(40)
    found = top_blocks(scores, torch.tensor(count, dtype=dtype, device=DEVICE), 7, 16, backend)
    taken = max(min(count, 16), 0)
    assert int(found.count) == taken
    assert found.ids.tolist() == [7 + i for i in expected(scores.tolist(), taken)] + [-1] * (16 - taken)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [0, 3])
def test_no_blocks(count: int, backend: Backend) -> None:
    found = top_blocks(normal(0), count, backend=backend)
    assert found.ids.tolist() == [-1] * count
    assert int(found.count) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_second_score(backend: Backend) -> None:
    scores = normal(50)
    scores[1::2] = INF
    assert top_blocks(scores[::2], 5, backend=backend).ids.tolist() == expected(scores[::2].tolist(), 5)


def test_what_does_not_fit_is_refused() -> None:
    scores = normal(4)
    for wrong in (scores.double(), scores.view(2, 2)):
        with pytest.raises(ValueError, match="scores"):
            top_blocks(wrong, 1)
    for count in (torch.tensor([1]), torch.tensor(1.0), torch.tensor(1, device="meta")):
        with pytest.raises(ValueError, match="count must be"):
            top_blocks(scores, count, max_count=1)
    with pytest.raises(ValueError, match="max_count must be given"):
        top_blocks(scores, torch.tensor(1, device=DEVICE))
    with pytest.raises(ValueError, match="negative"):
        top_blocks(scores, -1)
    with pytest.raises(ValueError, match="negative"):
        top_blocks(scores, 1, max_count=-1)


def test_the_kernel_that_was_asked_for_runs_or_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendUnavailable, match="top_blocks"):
        top_blocks(torch.zeros(3), 1, backend="triton")


@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs need a GPU")
def test_scoring_and_choosing_run_in_a_cuda_graph() -> None:
    probe, representatives = normal(8, 64), normal(200, 1, 2, 64)
    count = torch.tensor(5, device=DEVICE)

    def step() -> tuple[Tensor, Tensor, Tensor]:
        scores = block_scores(probe, representatives)
        found = top_blocks(scores, count, max_count=50)
        return density(scores), found.ids, found.count

    step()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = step()
    for wanted in (5, 50, 0):
        probe.copy_(normal(8, 64, seed=wanted))
        count.fill_(wanted)
        graph.replay()
        for found, expected_of_it in zip(replayed, step(), strict=True):
            assert torch.equal(found, expected_of_it)
