"""The bench knows every kernel, finds what is wrong, tells no speed of it, and ends in one line of JSON."""

import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_cases import DEVICE
from torch import Tensor

import actqkv_kernels
from actqkv_kernels.bench import __main__ as bench
from actqkv_kernels.bench.calls import Call, Draw, Make
from actqkv_kernels.bench.cases import CASES, INTERPRETED, Case
from actqkv_kernels.bench.checks import check, tensors
from actqkv_kernels.bench.compiled import compile_apart

CEILINGS = dict.fromkeys(("copy_bytes_per_second", "read_bytes_per_second", "matmul_operations_per_second"), 1e9)
Run = Callable[..., tuple[int, list[str], Any]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the bench, which neither compiles nor measures the machine: its exit code, its table, and its record."""
    monkeypatch.setattr(bench, "compile_apart", lambda names: [])
    monkeypatch.setattr(bench, "ceilings", lambda device: CEILINGS)

    def run(*arguments: str) -> tuple[int, list[str], Any]:
        code = bench.main(arguments)
        *table, last = capsys.readouterr().out.splitlines()
        return code, table, json.loads(last)

    return run


def breaking(monkeypatch: pytest.MonkeyPatch, folder: str, name: str, change: Callable[[Tensor], object]) -> None:
    """The first output of an operation's kernel is changed from now on."""
    kernel = import_module(f"actqkv_kernels.{folder}.kernel")
    launch = getattr(kernel, name)

    def broken(*args: Any) -> Any:
        outputs = launch(*args)
        change(tensors(outputs)[0])
        return outputs

    monkeypatch.setattr(kernel, name, broken)


def one_wrong(output: Tensor) -> None:
    """One number off by a part of what the numbers are like, or the next whole number."""
    size = output.float().square().mean().sqrt() if output.is_floating_point() else 3
    output.view(-1)[-1] += 0.34 * size if output.is_floating_point() else 1


def test_no_kernel_is_forgotten() -> None:
    folders = {path.parent.name for path in Path(actqkv_kernels.__file__).parent.glob("*/kernel.py")}
    public = [getattr(actqkv_kernels, name) for name in actqkv_kernels.__all__]
    operations = {part for part in public if inspect.isfunction(part) and part.__module__.split(".")[1] in folders}
    assert {operation.__module__.split(".")[1] for operation in operations} == folders
    assert {case.operation for case in CASES} == operations
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_case_is_right_and_with_one_wrong_number_it_is_not(case: Case) -> None:
    def made() -> Call:
        return case.make(INTERPRETED, Draw(DEVICE, 0))

    def made_wrong() -> Call:
        call = made()

        def run() -> Any:
            outputs = call.run()
            one_wrong(tensors(outputs)[0])
            return outputs

        return replace(call, run=run)

    assert check(made, case.allowed)["correct"]
    assert not check(made_wrong, case.allowed)["correct"]


@pytest.mark.parametrize("name", ["paged_attention.decode", "paged_attention.window"])
def test_rivals_do_the_same_work(name: str) -> None:
    rivals = next(case.rivals for case in CASES if case.name == name)
    sdpa = [make for rival, make in rivals.items() if rival.startswith("SDPA")]
    assert len(sdpa) == 2
    for make in sdpa:

        def made(make: Make = make) -> Call:
            return make(INTERPRETED, Draw(DEVICE, 0))

        assert check(made, 1e-2, poison=False)["correct"]


@pytest.mark.parametrize(
    "outputs",
    [
        torch.tensor([1.0, 2.0, torch.nan]),
        torch.tensor([1.0, 2.0, torch.inf]),
        torch.tensor([1.0, 2.0]),
        torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64),
    ],
    ids=["not a number", "infinite", "too few", "of another type"],
)
def test_outputs_that_cannot_be_compared_are_wrong(outputs: Tensor) -> None:
    expected = torch.tensor([1.0, 2.0, 3.0])
    found = check(lambda: Call(lambda: outputs, lambda: expected, "", 1), 1e-2)
    assert not found["correct"]
    assert "ValueError" in found["problem"]


def test_a_number_that_is_not_written_is_wrong() -> None:
    def call() -> Call:
        return Call(lambda: torch.empty(3), lambda: torch.zeros(3), "", 1)

    assert "not all were written" in check(call, 1e-2)["problem"]


@pytest.mark.parametrize(
    ("name", "folder", "launcher", "change"),
    [
        ("density.8K", "block_scores", "density", lambda output: output.mul_(1.01)),
        ("top_blocks.8K", "top_blocks", "top_blocks", one_wrong),
        ("paged_attention.decode", "paged_attention", "paged_attention", one_wrong),
        ("activation_probe", "activation_probe", "activation_probe", lambda output: output.resize_(1, 1)),
    ],
)
def test_a_wrong_kernel_is_not_timed(
    name: str, folder: str, launcher: str, change: Callable[[Tensor], object], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking(monkeypatch, folder, launcher, change)
    code, table, record = run("--case", name, "--case", "budget_shares")
    assert code == 1
    assert record["failed"]
    cases = {case["name"]: case for case in record["cases"]}
    assert cases.keys() == {name, "budget_shares"}
    assert cases[name]["correct"] is False
    assert "milliseconds" not in json.dumps(cases[name])
    assert next(line for line in table if line.startswith(name)).find("wrong, not timed") > 0
    assert cases["budget_shares"]["correct"]
    assert cases["budget_shares"]["milliseconds"]["median"] > 0


def test_the_record_says_what_was_done_where(run: Run) -> None:
    code, table, record = run("--case", "block_scores.dot")
    assert code == 0
    assert not record["failed"]
    assert record["machine"]["processor"]
    assert record["versions"]["torch"] == torch.__version__
    assert [case["name"] for case in record["cases"]] == [f"block_scores.dot.{size}" for size in ("8K", "100K", "1M")]
    for case in record["cases"]:
        times = case["milliseconds"]
        assert times["p20"] <= times["median"] <= times["p80"]
        assert case["bytes_per_second"] == pytest.approx(case["bytes"] / times["median"] * 1e3)
        assert case["shares"]["copy"] == pytest.approx(case["bytes_per_second"] / 1e9)
        assert any(line.startswith(case["name"]) for line in table)
    assert all(line.isascii() for line in table)


def test_only_json_is_printed_where_that_is_wanted(run: Run) -> None:
    code, table, record = run("--json", "--case", "density.8K")
    assert (code, table, len(record["cases"])) == (0, [], 1)


def test_what_fails_does_not_stop_the_rest(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(device: str) -> Any:
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(bench, "ceilings", out_of_memory)
    code, table, record = run("--case", "density.8K")
    assert code == 1
    assert record["ceilings"] == {"problem": "RuntimeError: out of memory"}
    assert record["cases"][0]["milliseconds"]["median"] > 0
    assert any("ceilings: failed: RuntimeError: out of memory" in line for line in table)


def test_without_triton_the_torch_path_is_timed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "triton_missing", lambda device: "triton cannot be imported")
    code, table, record = run("--case", "density.8K")
    assert code == 0
    assert record["cases"][0]["correct"] is None
    assert record["cases"][0]["timed"] == "torch"
    assert "no kernel was checked: triton cannot be imported" in table


def test_a_case_that_there_is_not_is_named(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run("--case", "block_score")
    assert exit_.value.code == 2
    assert "there is no case block_score; there are activation_probe," in capsys.readouterr().err


def test_full_size_kernels_compile_without_spilling() -> None:
    largest = {case.operation: case.name for case in CASES}  # of each operation, the last case
    names = [*largest.values(), "paged_attention.decode", "paged_attention.decode_group8"]
    found = compile_apart(names)
    assert {row["case"] for row in found} == set(names)
    for row in found:
        assert row["kernels"], row
        if row["capability"] == 90:
            assert [kernel["stack"] for kernel in row["kernels"]] == [0] * len(row["kernels"]), row
        if row["case"].startswith("paged_attention"):
            assert next(kernel for kernel in row["kernels"] if kernel["name"] == "_attend")["matrix_units"]
