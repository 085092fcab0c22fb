"""Attention over pages in place: the formula in float64, the reference, torch in few passes, and the kernels."""

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, ROUNDING, assert_near, normal
from torch import Tensor

from actqkv_kernels.backend import BackendUnavailable
from actqkv_kernels.paged_attention import PagedOutput, PageList, Workspace, gathered, paged_attention
from actqkv_kernels.quantization import quantize_channels, quantize_rows

POOL = 40  # pages, most of them never listed: they hold NaN


@dataclass(frozen=True)
class Case:
    heads: int = 4
    kv_heads: int = 2
    window: int = 1
    dim: int = 64
    size: int = 16
    far: int = 3  # pages
    near: int = 2
    behind: int = 0  # near keys behind the last query, that are not written yet
    dtype: torch.dtype = torch.float32
    positions: str = "clamped"
    local: int = 40

    def inputs(self) -> dict[str, Any]:
        """A pool of which only the listed pages hold numbers, and of those only the keys that are there."""
        rows = self.near * self.size - 5 - self.behind  # the last near page is short
        queries = torch.arange(rows - self.window, rows, dtype=torch.int32)
        far_keys = self.far * self.size
        near = torch.arange(self.near * self.size, dtype=torch.int32)
        near[rows + self.behind :] = -1
        if self.positions == "clamped":
            far, query = torch.zeros(far_keys, dtype=torch.int32), torch.full_like(queries, self.local)
            where = torch.stack([query, queries])
        else:  # compact
            far = torch.arange(far_keys, dtype=torch.int32)
            near[: rows + self.behind] += far_keys
            where = (queries + far_keys).expand(2, -1)
        if self.far:
            far[-3:] = -1  # a gap
        order = torch.randperm(POOL, generator=torch.Generator().manual_seed(1)).int()
        pool = torch.full((POOL, 2, self.kv_heads, self.size, self.dim), math.nan, dtype=self.dtype)
        lists = []
        for slots, positions in ((order[: self.far], far), (order[self.far : self.far + self.near], near)):
            positions = positions.view(-1, self.size)
            for slot, at in zip(slots.tolist(), positions, strict=True):
                made = normal(2, self.kv_heads, self.size, self.dim, dtype=self.dtype, seed=slot).cpu()
                unwritten = (at < 0) | (at > where.max())
                pool[slot] = made.masked_fill(unwritten[:, None], math.nan)
            padding = torch.full((2,), 7, dtype=torch.int32)  # listed, but not counted
            lists.append(
                PageList(
                    torch.cat([slots, padding]).to(DEVICE),
                    torch.cat([positions, torch.zeros(2, self.size, dtype=torch.int32)]).to(DEVICE),
                    torch.tensor(len(slots), dtype=torch.int32, device=DEVICE),
                )
            )
        pool = pool.to(DEVICE)
        return {
            "query": normal(self.heads, self.window, self.dim, dtype=self.dtype, seed=99),
            "keys": pool[:, 0],
            "values": pool[:, 1],
            "far": lists[0],
            "near": lists[1],
            "query_positions": where.contiguous().to(DEVICE),
            "rotation": rotation(self.dim),
            "scaling": self.dim**-0.5,
        }


def rotation(dim: int) -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.arange(400.0), 100.0 ** (-torch.arange(dim // 2) / (dim // 2)))
    return angles.cos().to(DEVICE), angles.sin().to(DEVICE)


def run(inputs: dict[str, Any], backend: Any, **more: Any) -> PagedOutput:
    return paged_attention(**{**inputs, **more}, backend=backend)


def by_hand(given: dict[str, Any], sliding_window: Any = None) -> Any:
    """A head, a query and a key at a time, in float64: outputs `(H, W, d)` and mass `(Hkv, pages, b)`."""
    query, keys, values = (given[name].double().cpu() for name in ("query", "keys", "values"))
    (heads, window, dim), kv_heads, size = query.shape, keys.shape[1], keys.shape[2]
    cos, sin = (table.double().cpu() for table in given["rotation"] or (torch.ones(400, dim // 2), torch.zeros(400, 1)))
    cos, sin = cos.expand(400, dim // 2), sin.expand(400, dim // 2)

    def turn(x: Tensor, at: int) -> Tensor:
        pairs = torch.complex(*x.chunk(2)) * torch.complex(cos[at], sin[at])
        return torch.cat([pairs.real, pairs.imag])

    out = torch.zeros(heads, window, dim, dtype=torch.float64)
    mass = torch.zeros(kv_heads, sum(len(given[side].slots) for side in ("far", "near")), size, dtype=torch.float64)
    for head in range(heads):
        kv_head = head * kv_heads // heads
        for token in range(window):
            seen = []
            for number, side in enumerate(("far", "near")):
                at = int(given["query_positions"][number, token])
                q = turn(query[head, token], at)
                for page in range(int(given[side].count)):
                    for row, position in enumerate(given[side].positions[page].tolist()):
                        if position < 0 or position > at or (sliding_window and at - position >= sliding_window):
                            continue
                        slot = int(given[side].slots[page])
                        score = float(q @ turn(keys[slot, kv_head, row], position)) * given["scaling"]
                        place = page + number * len(given["far"].slots), row
                        seen.append((math.exp(score), place, values[slot, kv_head, row]))
            total = sum(weight for weight, _, _ in seen)
            for weight, place, value in seen:
                out[head, token] += weight / total * value
                mass[kv_head, *place] += weight / total
    return out.to(DEVICE), mass.to(DEVICE)


BACKENDS = ["reference", "torch", "triton"]


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("window", [1, 30])
def test_scores_of_bf16_are_not_rounded(window: int, backend: str) -> None:
    """Qwen2.5's are large: next to 200, bf16 knows whole numbers only."""
    given = Case(window=window, positions="compact", dim=16, dtype=torch.bfloat16).inputs()
    given["query"] = given["query"] / 10 + 2
    given["keys"][:] += 25
    given["rotation"] = None
    _, mass = by_hand(given)
    found = run(given, backend, return_mass=True)
    assert found.mass is not None
    torch.testing.assert_close(found.mass.double(), mass, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sliding_window", [None, 20])
@pytest.mark.parametrize("positions", ["clamped", "compact"])
@pytest.mark.parametrize("window", [1, 7])
def test_equals_the_formula(window: int, positions: str, sliding_window: int | None, backend: str) -> None:
    given = Case(window=window, positions=positions, dim=16).inputs()
    found = run(given, backend, return_mass=True, sliding_window=sliding_window)
    out, mass = by_hand(given, sliding_window)
    assert found.mass is not None
    torch.testing.assert_close(found.out.double(), out, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.mass.double(), mass, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_keys_may_stand_behind_a_query(backend: str) -> None:
    given = Case(window=7, positions="compact", dim=16).inputs()
    given["query_positions"][0] -= 40  # within those of the far keys
    found = run(given, backend, return_mass=True)
    out, mass = by_hand(given)
    assert found.mass is not None
    torch.testing.assert_close(found.out.double(), out, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.mass.double(), mass, atol=1e-5, rtol=1e-4)


CASES = {
    "decode": Case(),
    "decode of a group of eight": Case(heads=8, kv_heads=1, dim=128, size=32),
    "no group": Case(heads=3, kv_heads=3, dim=80),
    "heads of 256": Case(heads=2, kv_heads=1, dim=256, window=3),
    "heads of 96": Case(heads=6, kv_heads=2, dim=96, window=9),
    "large blocks": Case(size=128, window=5),
    "nothing far": Case(far=0, window=4),
    "nothing near but the window": Case(near=1, window=11),
    "many pages": Case(far=20, near=12),
    "window": Case(window=70, near=8, size=16, dim=64),
    "keys to come": Case(behind=19, near=4),
    "keys to come behind a window": Case(behind=19, near=4, window=20),
    "long window": Case(heads=2, kv_heads=1, window=150, near=12, size=16),
    "window of three to a group": Case(heads=6, kv_heads=2, window=45, near=3, size=32, positions="compact"),
    "window of wide heads": Case(heads=2, kv_heads=2, window=33, near=5, size=16, dim=256),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in CASES] + [(name, dtype) for name in list(CASES)[:4] for dtype in DTYPES[1:]],
)
def test_all_equal_the_reference(name: str, dtype: torch.dtype) -> None:
    given = replace(CASES[name], dtype=dtype).inputs()
    expected = run(given, "reference", return_mass=True)
    assert expected.mass is not None
    for backend in ("torch", "triton"):
        found = run(given, backend, return_mass=True)
        assert found.out.dtype == dtype
        assert found.mass is not None
        assert_near(found.out, expected.out, ROUNDING[dtype])
        assert_near(found.mass, expected.mass, ROUNDING[dtype])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [1, 20])
def test_every_query_gives_away_exactly_one(window: int, backend: str) -> None:
    case = Case(window=window)
    found = run(case.inputs(), backend, return_mass=True)
    assert found.mass is not None
    share = torch.full((case.kv_heads,), float(case.heads // case.kv_heads * window), device=DEVICE)
    torch.testing.assert_close(found.mass.sum(dim=(1, 2)), share, atol=0, rtol=1e-4)
    assert run(case.inputs(), backend).mass is None


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("case", [Case(), Case(window=20, dim=80, heads=6), Case(dim=128, size=32)])
def test_codes_are_read_as_their_numbers(case: Case, bits: Any) -> None:
    given = case.inputs()
    pools = {name: given[name].nan_to_num(0) for name in ("keys", "values")}
    codes = {"keys": quantize_channels(pools["keys"], bits), "values": quantize_rows(pools["values"], bits)}
    exact = run(dict(given, **pools), "torch")
    expected, found = (run(dict(given, **codes), backend, return_mass=True) for backend in ("torch", "triton"))
    assert_near(found.out, expected.out, 1e-5)
    assert found.mass is not None
    assert expected.mass is not None
    assert_near(found.mass, expected.mass, 1e-5)
    assert_near(found.out, exact.out, 0.03 if bits == 8 else 0.4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [1, 40])
def test_a_query_that_sees_nothing_gets_zeros(window: int, backend: str) -> None:
    given = Case(window=window, near=3).inputs()
    none = torch.zeros((), dtype=torch.int32, device=DEVICE)
    given["far"], given["near"] = (replace(given[side], count=none) for side in ("far", "near"))
    found = run(given, backend, return_mass=True)
    assert found.mass is not None
    assert (found.out == 0).all()
    assert (found.mass == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_order_of_far_pages_does_not_matter(backend: str) -> None:
    given = Case(far=6).inputs()
    far = given["far"]
    order = torch.tensor([4, 1, 5, 0, 3, 2, 6, 7], device=DEVICE)
    moved = replace(far, slots=far.slots[order], positions=far.positions[order])
    assert_near(run(dict(given, far=moved), backend).out, run(given, backend).out, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_at_zero_may_be_taken_as_stored(backend: str) -> None:
    given = Case(window=3).inputs()
    stored = dict(given, far=replace(given["far"], as_stored=True))
    assert_near(run(stored, backend).out, run(given, backend).out, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_rotation_positions_only_say_who_sees_whom(backend: str) -> None:
    given = dict(Case(window=3, dim=16).inputs(), rotation=None)
    assert_near(run(given, backend).out.double(), by_hand(given)[0], 1e-5)


@pytest.mark.parametrize("window", [1, 20])
def test_large_scores_stay_finite(window: int) -> None:
    given = Case(window=window).inputs()
    expected = run(given, "reference", scaling=300.0).out
    for backend in ("torch", "triton"):
        assert_near(run(given, backend, scaling=300.0).out, expected, 1e-4)


def test_queries_may_be_a_view() -> None:
    given = Case(window=9, heads=4).inputs()
    turned = given["query"].transpose(0, 1).contiguous().transpose(0, 1)
    assert not turned.is_contiguous()
    for backend in BACKENDS:
        assert torch.equal(run(dict(given, query=turned), backend).out, run(given, backend).out)


def test_what_does_not_fit_is_refused() -> None:
    given = Case().inputs()
    for wrong in (
        {"query": given["query"][:, :, :32]},
        {"query": given["query"][:3]},
        {"values": given["values"][:, :1]},
        {"far": replace(given["far"], positions=given["far"].positions[:1])},
        {"near": replace(given["near"], slots=given["near"].slots.long())},
        {"query_positions": given["query_positions"][:1]},
        {"rotation": tuple(table[:, :4] for table in given["rotation"])},
    ):
        with pytest.raises(ValueError, match=r"fit|must be"):
            run(dict(given, **wrong), "auto")


def test_what_the_kernel_cannot_take_is_said() -> None:
    given = Case(dim=320, heads=2, kv_heads=1).inputs()
    with pytest.raises(BackendUnavailable, match="wider than 256"):
        run(given, "triton")


def test_what_is_written_between_calls_is_seen() -> None:
    """A list keeps what torch gathered of it: keys that are written later, or anew, are gathered then."""
    given = Case(window=9, near=4, positions="compact").inputs()
    pool, near = given["keys"], given["near"]
    last = int(given["query_positions"][1, -1])
    flat = near.positions[:4].flatten()
    query = normal(4, 12, 64, seed=98)
    for first, window in ((last - 30, 9), (last - 21, 1), (last - 20, 12), (last - 30, 4), (last - 26, 1)):
        where = torch.arange(first, first + window, dtype=torch.int32, device=DEVICE).expand(2, -1).contiguous()
        for place in ((flat >= first) & (flat < first + window)).nonzero()[:, 0].tolist():
            slot, row = int(near.slots[place // 16]), place % 16
            pool[slot, :, row] += 0.1 * window
        now = dict(given, query=query[:, :window], query_positions=where)
        assert_near(run(now, "torch").out, run(now, "reference").out, 1e-5)


@pytest.mark.parametrize("window", [1, 40])
@pytest.mark.parametrize("limit", [1, 3 * 2 * 40 * 57 * 4, 1 << 30], ids=["one", "three", "all"])
def test_heads_in_several_steps(window: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = Case(heads=14, kv_heads=7, window=window, near=4, dim=32).inputs()
    expected = run(given, "reference", return_mass=True)
    monkeypatch.setattr(gathered, "_SCORE_BYTES", limit)
    found = run(given, "torch", return_mass=True)
    assert_near(found.out, expected.out, 2e-5)
    assert found.mass is not None
    assert expected.mass is not None
    assert_near(found.mass, expected.mass, 2e-5)


def test_what_a_workspace_held_before_does_not_matter() -> None:
    workspace = Workspace()
    for case in (Case(window=9), Case(far=0, window=3), Case(near=9, window=30)):
        expected = run(case.inputs(), "torch").out
        workspace.take((5000,), torch.float32, expected.device).fill_(math.nan)
        assert torch.equal(run(case.inputs(), "torch", workspace=workspace).out, expected)


def test_the_same_positions_by_longer_tables() -> None:
    """As tables grow while a workspace keeps how the queries before were turned."""
    workspace, given = Workspace(), Case(window=3).inputs()
    cos, sin = given["rotation"]
    for tables in ((cos[:100], sin[:100]), (cos, sin), (-cos, sin), None):
        now = {**Case(window=3).inputs(), "query_positions": given["query_positions"], "rotation": tables}
        found = run(now, "torch", workspace=workspace).out
        assert_near(found, run(now, "reference").out, 1e-5)
