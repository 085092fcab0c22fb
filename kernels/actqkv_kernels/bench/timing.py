"""How long calls take, and how fast this machine moves and multiplies numbers at best.

On a GPU a CUDA graph of one call after the other is replayed between two events, so launches cost what they cost in a
recorded decoding step; each call has inputs of its own, more of them than its second-level cache holds if need be.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any

import torch

_CPU_CACHE_BYTES = 32 << 20  # about what there is
_BEYOND = 2.5  # times the cache that inputs take, in turn
_MAX_CALLS = {"cuda": 256, "cpu": 2}
_MILLISECONDS = {"cuda": 100, "cpu": 400}  # of one measurement
_MAX_REPETITIONS = 200


@dataclass(frozen=True)
class Time:
    """Milliseconds of one call."""

    median: float
    p20: float
    p80: float


def num_calls(nbytes: int, device: str) -> int:
    """How many calls that move so many bytes go beyond the cache, within reason."""
    return min(max(int(_BEYOND * cache_bytes(device)) // nbytes + 1, 2), _MAX_CALLS[device])


@cache
def cache_bytes(device: str) -> int:
    """Of the second level."""
    return int(torch.cuda.get_device_properties(0).L2_cache_size) if device == "cuda" else _CPU_CACHE_BYTES


def measure(calls: Sequence[Callable[[], Any]], device: str, graph: bool = True) -> Time:
    """The median and percentiles over repetitions of all calls, of which each takes its part. graph: record them."""

    def run() -> list[Any]:
        return [call() for call in calls]  # all outputs are kept, so that each has memory of its own

    times = _on_cpu(run) if device == "cpu" else _on_gpu(_recorded(run) if graph else run)
    p20, median, p80 = (statistics.quantiles(times, n=10, method="inclusive")[i] / len(calls) for i in (1, 4, 7))
    return Time(median, p20, p80)


def _on_cpu(run: Callable[[], Any]) -> list[float]:
    times: list[float] = []  # the first does not count, for what is made ready in it
    while len(times) < 4 or (sum(times) < _MILLISECONDS["cpu"] and len(times) < _MAX_REPETITIONS):
        began = time.perf_counter()
        run()
        times.append((time.perf_counter() - began) * 1e3)
    return times[1:]


def _on_gpu(run: Callable[[], Any]) -> list[float]:
    def repeated(count: int) -> list[float]:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        events[0].record()
        for event in events[1:]:  # never waited for, so that there is no gap between one and the next
            run()
            event.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in pairwise(events)]

    once = min(repeated(3))
    return repeated(min(max(int(_MILLISECONDS["cuda"] / once), 20), _MAX_REPETITIONS))


def _recorded(run: Callable[[], Any]) -> Callable[[], Any]:
    """A CUDA graph of what runs, ready to be replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()  # what is compiled and loaded in the first run cannot be recorded
    torch.cuda.current_stream().wait_stream(stream)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        outputs = run()

    def replay(_kept: Any = outputs) -> None:
        recorded.replay()

    return replay


def ceilings(device: str) -> dict[str, float]:
    """Bytes/s of copying (read and written) and of reading (a sum) a large buffer, operations/s of a bf16 product."""
    size, side = (1 << 30, 8192) if device == "cuda" else (128 << 20, 1024)
    numbers = torch.randn(size // 4, device=device)
    reading = measure([partial(torch.sum, numbers)], device)
    del numbers
    left, right = torch.randn((2, side, side), dtype=torch.bfloat16, device=device)
    product = measure([partial(torch.mm, left, right)], device)
    return {
        "copy_bytes_per_second": copy_rate(2 * size, device),
        "read_bytes_per_second": size / reading.median * 1e3,
        "matmul_operations_per_second": 2 * side**3 / product.median * 1e3,
    }


@cache
def copy_rate(nbytes: int, device: str) -> float:
    """Bytes/s, read and written, of the faster of two ways to copy so many bytes in all, from memory."""
    count = max(nbytes // 8, 1)
    pairs = [torch.randn((2, count), device=device) for _ in range(num_calls(nbytes, device))]
    negations = [partial(torch.neg, source, out=target) for source, target in pairs]
    copies = [partial(target.copy_, source) for source, target in pairs]
    fastest = min(measure(calls, device).median for calls in (negations, copies))
    return 8 * count / fastest * 1e3
