"""One case: checked, and timed if it is right, beside its rivals and beside what the machine can do."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from actqkv_kernels.bench.calls import Call, Draw, Make
from actqkv_kernels.bench.cases import INTERPRETED, LLAMA_8B, ON_CPU, Case
from actqkv_kernels.bench.checks import Record, check, tried
from actqkv_kernels.bench.timing import Time, cache_bytes, calls_wanted, copy_rate, measure

Way = Callable[[Call], Callable[[], Any]]


def measured(case: Case, device: str, ceilings: Record, unchecked: str) -> Record:
    """The case's part of the record. unchecked: why no kernel runs here.

    On a GPU the kernel is timed beside the torch path, elsewhere the torch path is.
    """
    kernel = device == "cuda" and not unchecked
    record: Record = {"name": case.name, "correct": None, "rivals": []}
    if not unchecked:
        record |= _checked(case.make, case.allowed, device)
        if not record["correct"]:
            return record
    if kernel:
        record |= {"timed": "triton"} | tried(lambda: _rates(case.make, _kernel, device, ceilings))
        name = "torch, not recorded" if case.waits else "torch"
        record["rivals"].append(_timed_rival(name, case.make, _reference, device, not case.waits))
    else:
        record |= {"timed": "torch"} | tried(lambda: _rates(case.make, _reference, device, ceilings, not case.waits))
    for name, make in case.rivals.items():
        checked = _checked(make, case.allowed, device, poison=False)
        timed = _timed_rival(name, make, _kernel, device) if checked["correct"] else {}
        record["rivals"].append({"name": name} | checked | timed)
    return record


def _kernel(call: Call) -> Callable[[], Any]:
    return call.run


def _reference(call: Call) -> Callable[[], Any]:
    return call.reference


def _checked(make: Make, allowed: float, device: str, poison: bool = True) -> Record:
    shapes = LLAMA_8B if device == "cuda" else INTERPRETED
    return check(lambda: make(shapes, Draw(device, 0)), allowed, poison)


def _timed_rival(name: str, make: Make, way: Way, device: str, graph: bool = True) -> Record:
    return {"name": name, "correct": True} | tried(
        lambda: {"milliseconds": asdict(_timed(make, way, device, graph)[0])}
    )


def _timed(make: Make, way: Way, device: str, graph: bool = True) -> tuple[Time, Call, int]:
    """The time of a call, one call, and how many took turns."""
    made = partial(make, LLAMA_8B if device == "cuda" else ON_CPU)
    calls = [made(Draw(device, 0))]
    calls += [made(Draw(device, seed)) for seed in range(1, calls_wanted(calls[0].moved, device))]
    return measure([way(call) for call in calls], device, graph), calls[0], len(calls)


def _rates(make: Make, way: Way, device: str, ceilings: Record, graph: bool = True) -> Record:
    time, call, count = _timed(make, way, device, graph)
    moved = call.moved / time.median * 1e3
    computed = call.operations / time.median * 1e3 if call.operations else None
    rates = {"copy_bytes_per_second": moved, "read_bytes_per_second": moved, "matmul_operations_per_second": computed}
    shares = {
        name.partition("_")[0]: rate / ceilings[name] for name, rate in rates.items() if rate and name in ceilings
    }
    return {
        "shape": call.shape,
        "milliseconds": asdict(time),
        "bytes": call.moved,
        "operations": call.operations,
        "bytes_per_second": moved,
        "operations_per_second": computed,
        "shares": shares | {"copy_of_as_much": moved / copy_rate(call.moved, device)},
        "calls_in_turn": count,
        "from_memory": count * call.moved > 2 * cache_bytes(device),
    }
