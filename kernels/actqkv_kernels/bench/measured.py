"""One case: checked, and timed if it is right, beside its rivals and beside what the machine can do."""

from dataclasses import asdict
from typing import Literal

from actqkv_kernels.bench.calls import Call, Draw, Make
from actqkv_kernels.bench.cases import INTERPRETED, LLAMA_8B, ON_CPU, Case
from actqkv_kernels.bench.checks import Record, attempt, check
from actqkv_kernels.bench.timing import Time, cache_bytes, copy_rate, measure, num_calls

Way = Literal["run", "reference"]  # of a call


def measure_case(case: Case, device: str, ceilings: Record, unchecked: str) -> Record:
    """The case's part of the record. unchecked: why no kernel runs here.

    On a GPU the kernel is timed beside the torch path, elsewhere the torch path is.
    """
    kernel_timed = device == "cuda" and not unchecked
    record: Record = {"name": case.name, "correct": None, "rivals": []}
    if not unchecked:
        record |= _check(case.make, case.allowed, device)
        if not record["correct"]:
            return record
    way: Way = "run" if kernel_timed else "reference"
    graph = kernel_timed or not case.waits
    record |= {"timed": "triton" if kernel_timed else "torch"}
    record |= attempt(lambda: _measure_rates(case.make, way, device, ceilings, graph))
    if kernel_timed:
        name = "torch, not recorded" if case.waits else "torch"
        record["rivals"].append(_time_rival(name, case.make, "reference", device, not case.waits))
    for name, make in case.rivals.items():
        checked = _check(make, case.allowed, device, poison=False)
        timed = _time_rival(name, make, "run", device) if checked["correct"] else {}
        record["rivals"].append({"name": name} | checked | timed)
    return record


def _check(make: Make, allowed: float, device: str, poison: bool = True) -> Record:
    shapes = LLAMA_8B if device == "cuda" else INTERPRETED
    return check(lambda: make(shapes, Draw(device, 0)), allowed, poison)


def _time_rival(name: str, make: Make, way: Way, device: str, graph: bool = True) -> Record:
    timed = attempt(lambda: {"milliseconds": asdict(_time(make, way, device, graph)[0])})
    return {"name": name, "correct": True} | timed


def _time(make: Make, way: Way, device: str, graph: bool = True) -> tuple[Time, Call, int]:
    """The time of a call, one call, and how many took turns."""
    shapes = LLAMA_8B if device == "cuda" else ON_CPU
    calls = [make(shapes, Draw(device, 0))]
    calls += [make(shapes, Draw(device, seed)) for seed in range(1, num_calls(calls[0].nbytes, device))]
    return measure([getattr(call, way) for call in calls], device, graph), calls[0], len(calls)


def _measure_rates(make: Make, way: Way, device: str, ceilings: Record, graph: bool = True) -> Record:
    time, call, count = _time(make, way, device, graph)
    rate = call.nbytes / time.median * 1e3
    computed = call.operations / time.median * 1e3 if call.operations else None
    rates = {"copy_bytes_per_second": rate, "read_bytes_per_second": rate, "matmul_operations_per_second": computed}
    shares = {name.partition("_")[0]: own / ceilings[name] for name, own in rates.items() if own and name in ceilings}
    return {
        "shape": call.shape,
        "milliseconds": asdict(time),
        "bytes": call.nbytes,
        "operations": call.operations,
        "bytes_per_second": rate,
        "operations_per_second": computed,
        "shares": shares | {"copy_of_as_much": rate / copy_rate(call.nbytes, device)},
        "calls_in_turn": count,
        "from_memory": count * call.nbytes > 2 * cache_bytes(device),
    }
