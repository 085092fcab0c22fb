"""Joint attention over far and near keys: the formula in float64, the reference, and the fast implementation."""

import math

import pytest
import torch
from torch import Tensor

from actqkv_kernels import block_attention
from actqkv_kernels.block_attention import Workspace, gathered

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


class Case:
    def __init__(
        self, heads: int, kv_heads: int, window: int, far: int, near: int, dim: int, dtype: torch.dtype
    ) -> None:
        draw = torch.Generator().manual_seed(heads * 1000 + window * 10 + far + near + dim)
        self.far_query, self.near_query = torch.randn(2, heads, window, dim, generator=draw).to(dtype)
        self.far = tuple(torch.randn(2, kv_heads, far, dim, generator=draw).to(dtype))
        self.near = tuple(torch.randn(2, kv_heads, near, dim, generator=draw).to(dtype))
        self.scaling = dim**-0.5
        self.window, self.keys = window, far + near

    def run(self, backend: str, mask: Tensor | None = None, want_mass: bool = True) -> tuple[Tensor, Tensor]:
        result = block_attention(
            self.far_query,
            self.near_query,
            self.far,  # type: ignore[arg-type]
            self.near,  # type: ignore[arg-type]
            scaling=self.scaling,
            mask=mask,
            want_mass=want_mass,
            backend=backend,
        )
        assert (result.mass is not None) == want_mass
        return result.out, result.mass if result.mass is not None else torch.empty(0)

    def expected(self, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A head and a query at a time, in float64."""
        heads, kv_heads = len(self.near_query), len(self.near[0])
        out = torch.zeros(self.near_query.shape, dtype=torch.float64)
        mass = torch.zeros(kv_heads, self.keys, dtype=torch.float64)
        for head in range(heads):
            kv_head = head * kv_heads // heads
            (far_key, far_value), (near_key, near_value) = (
                (keys[kv_head].double(), values[kv_head].double()) for keys, values in (self.far, self.near)
            )
            for token in range(self.window):
                scores = torch.cat(
                    [
                        far_key @ self.far_query[head, token].double(),
                        near_key @ self.near_query[head, token].double(),
                    ]
                )
                if mask is not None:
                    for key, seen in enumerate(mask[token].tolist(), self.keys - mask.shape[1]):
                        if not seen:
                            scores[key] = -math.inf
                weights = (scores * self.scaling).exp()
                weights /= weights.sum()
                out[head, token] = weights @ torch.cat([far_value, near_value])
                mass[kv_head] += weights
        return out, mass


def masks(window: int, keys: int) -> dict[str, Tensor | None]:
    """None, causal over the window, and one of full width in which every query sees itself."""
    seen = torch.rand(window, keys, generator=torch.Generator().manual_seed(5)) < 0.6
    seen[:, -1] = True
    return {"none": None, "causal": torch.ones(window, window, dtype=torch.bool).tril(), "wide": seen}


@pytest.mark.parametrize("mask", ["none", "causal", "wide"])
@pytest.mark.parametrize("backend", ["reference", "gathered", "auto"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (6, 2), (8, 1)])
@pytest.mark.parametrize(("window", "far", "near"), [(1, 13, 7), (5, 0, 9), (17, 24, 31)])
def test_equals_the_formula(
    heads: int, kv_heads: int, window: int, far: int, near: int, backend: str, mask: str
) -> None:
    case = Case(heads, kv_heads, window, far, near, 16, torch.float32)
    chosen = masks(window, far + near)[mask]
    out, mass = case.run(backend, chosen)
    expected_out, expected_mass = case.expected(chosen)
    torch.testing.assert_close(out.double(), expected_out, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(mass.double(), expected_mass, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 64), (6, 2, 80), (8, 1, 128), (2, 1, 256)])
@pytest.mark.parametrize(
    ("window", "far", "near"), [(1, 64, 33), (1, 0, 5), (15, 96, 50), (16, 7, 16), (129, 320, 257)]
)
def test_gathered_equals_reference(
    heads: int, kv_heads: int, dim: int, window: int, far: int, near: int, dtype: torch.dtype
) -> None:
    case = Case(heads, kv_heads, window, far, near, dim, dtype)
    mask = torch.ones(window, window, dtype=torch.bool).tril()
    (out, mass), (expected, expected_mass) = case.run("gathered", mask), case.run("reference", mask)
    assert out.dtype == dtype
    assert mass.dtype == torch.float32
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(mass, expected_mass, atol=tolerance, rtol=tolerance)
    share = heads // kv_heads * window  # every query gives away exactly 1
    torch.testing.assert_close(
        mass.sum(dim=1), torch.full((kv_heads,), float(share)), atol=0, rtol=max(tolerance, 1e-4)
    )


@pytest.mark.parametrize("window", [1, 40])
@pytest.mark.parametrize("limit", [1, 3 * 2 * 40 * 57 * 4, 1 << 30], ids=["one", "three", "all"])
def test_heads_in_several_steps(window: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(14, 7, window, 16, 41, 32, torch.float32)
    mask = torch.ones(window, window, dtype=torch.bool).tril()
    expected, expected_mass = case.run("reference", mask)
    monkeypatch.setattr(gathered, "_SCORE_BYTES", limit)
    out, mass = case.run("gathered", mask)
    torch.testing.assert_close(out, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(mass, expected_mass, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", ["reference", "gathered"])
def test_large_scores_stay_finite(backend: str) -> None:
    case = Case(4, 2, 20, 8, 24, 16, torch.float32)
    case.scaling = 1e3
    out, mass = case.run(backend)
    assert out.isfinite().all()
    torch.testing.assert_close(mass.sum(), torch.tensor(4.0 * 20))


@pytest.mark.parametrize("backend", ["reference", "gathered"])
@pytest.mark.parametrize("window", [1, 20])
def test_arguments_stay_as_they_were(backend: str, window: int) -> None:
    case = Case(4, 2, window, 8, 24, 16, torch.float32)
    tensors = [case.far_query, case.near_query, *case.far, *case.near]
    before = [tensor.clone() for tensor in tensors]
    case.run(backend, want_mass=False)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def test_what_does_not_fit_is_refused() -> None:
    case = Case(4, 2, 3, 8, 8, 16, torch.float32)
    with pytest.raises(ValueError, match="backend"):
        case.run("fastest")
    case.near = (case.near[0][:, :, :8], case.near[1])
    with pytest.raises(ValueError, match="do not fit"):
        case.run("auto")


def test_what_a_workspace_held_before_does_not_matter() -> None:
    draw, workspace = torch.Generator().manual_seed(5), Workspace()
    for window, far, near in ((9, 40, 17), (3, 0, 5), (12, 64, 30)):
        query = torch.randn(4, window, 16, generator=draw)
        sides = [tuple(torch.randn(2, 2, tokens, 16, generator=draw)) for tokens in (far, near)]
        expected = block_attention(query, query, *sides, scaling=0.25)
        workspace.take((5000,), torch.float32, query.device).fill_(float("nan"))
        found = block_attention(query, query, *sides, scaling=0.25, workspace=workspace)
        assert torch.equal(found.out, expected.out)
