"""`python -m actqkv_kernels.bench`: a table, then one line of JSON; exit 1 where a kernel is wrong or a part failed."""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence

import torch

from actqkv_kernels.backend import interpreted, triton_missing
from actqkv_kernels.bench import report
from actqkv_kernels.bench.cases import CASES, Case
from actqkv_kernels.bench.checks import Record, attempt
from actqkv_kernels.bench.compiled import compile_apart
from actqkv_kernels.bench.machine import describe
from actqkv_kernels.bench.measured import measure_case
from actqkv_kernels.bench.timing import ceilings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench with arguments (None: the command line's). Returns the exit code."""
    began = time.perf_counter()
    cases, silent = _parse(arguments)

    def say(lines: Iterable[str]) -> None:
        for line in () if silent else lines:
            print(line, flush=True)

    device = "cpu" if interpreted() else "cuda"
    unchecked = triton_missing(torch.device(device))
    record: Record = describe(device) | {"unchecked": unchecked, "ceilings": attempt(lambda: ceilings(device))}
    say(report.header_lines(record))
    record |= {"cases": [], "compiled": []}
    for case in cases:
        record["cases"].append(measure_case(case, device, record["ceilings"], unchecked))
        say(report.case_lines(record["cases"][-1]))
    if device == "cpu" and not unchecked:
        record["compiled"] = compile_apart([case.name for case in cases])
        say(report.compiled_lines(record["compiled"]))
    parts = [record["ceilings"], *record["cases"], *record["compiled"]]
    record["failed"] = any("problem" in part or part.get("correct") is False for part in parts)
    record["seconds"] = time.perf_counter() - began
    print(json.dumps(record, allow_nan=False), flush=True)
    return int(record["failed"])


def _parse(arguments: Sequence[str] | None) -> tuple[list[Case], bool]:
    """The cases, and whether only JSON is wanted."""
    parser = argparse.ArgumentParser("python -m actqkv_kernels.bench", description="Check and time the kernels.")
    parser.add_argument("--case", action="append", default=[], metavar="NAME", help="only this case, or cases of it")
    parser.add_argument("--json", action="store_true", help="print only the JSON")
    asked = parser.parse_args(arguments)
    found = {name: [case for case in CASES if f"{case.name}.".startswith(f"{name}.")] for name in asked.case}
    for name, of_it in found.items():
        if not of_it:
            parser.error(f"there is no case {name}; there are {', '.join(case.name for case in CASES)}")
    return [case for case in CASES if not found or any(case in of_it for of_it in found.values())], asked.json


if __name__ == "__main__":
    sys.exit(main())
