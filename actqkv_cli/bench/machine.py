"""What this machine can do: rates of arithmetic, memory and disk, and the least time that they allow a task.

Every rate is the best of several tries, so that what follows from it is a floor.
"""

import contextlib
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention

from actqkv_cli import __version__
from actqkv_cli.model.shape import Shape
from actqkv_kernels.provenance import commit, processor

_MIN_SECONDS = 0.3  # seconds of one measurement
_MAX_ROWS = 4096
_COPY_BYTES = 256 << 20  # bytes, beyond any cache
_FILE_BYTES = 256 << 20
_CHUNK_BYTES = 4 << 20
_DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True)
class Compute:
    """product, attention: FLOP/s of products like the model's over many tokens, and of causal attention; memory:
    bytes/s read and written in copying."""

    product: float
    attention: float
    memory: float

    def floor(self, shape: Shape, tokens: int, pairs: int) -> float:
        """The least seconds of a forward pass over `tokens` with so many attended (query, key) pairs, were all of its
        arithmetic done as fast as the products: (2 · parameters of the layers · tokens + 4 · layers · heads ·
        head_dim · pairs) / product rate."""
        return (shape.product_flops(tokens) + shape.attention_flops(pairs)) / self.product

    def estimate(self, shape: Shape, tokens: int, pairs: int) -> float:
        """The same with attention as fast as it is measured to be."""
        return shape.product_flops(tokens) / self.product + shape.attention_flops(pairs) / self.attention


@dataclass(frozen=True)
class Disk:
    """Bytes/s of one large file, in order. cold: None where the page cache cannot be dropped; dropped: see
    `drop_cached`."""

    write: float
    cold: float | None
    warm: float
    dropped: str


def measure_compute(shape: Shape, dtype: torch.dtype, device: torch.device) -> Compute:
    """A few seconds of one layer's products, attention over a few thousand tokens, and copies of a large buffer."""
    with torch.inference_mode():
        weights = [torch.randn(sizes, dtype=dtype, device=device) * sizes[1] ** -0.5 for sizes in shape.products]
        product, rows = 0.0, 256
        while rows <= _MAX_ROWS:
            inputs = {into: torch.randn(rows, into, dtype=dtype, device=device) for _, into in shape.products}

            def layer(inputs: dict[int, torch.Tensor] = inputs) -> None:
                for weight in weights:
                    linear(inputs[weight.shape[1]], weight)

            seconds = _best(layer, device)
            product = max(product, 2 * shape.layer_parameters * rows / seconds)
            rows *= 2
            if seconds > _MIN_SECONDS:  # more rows would not be faster, only longer
                break
        query = torch.randn(1, shape.heads, 2048, shape.head_dim, dtype=dtype, device=device)
        seconds = _best(lambda: scaled_dot_product_attention(query, query, query, is_causal=True), device)
        attention = 4 * shape.heads * shape.head_dim * (2048 * 2049 // 2) / seconds
        source = torch.ones(_COPY_BYTES, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        memory = 2 * _COPY_BYTES / _best(lambda: target.copy_(source), device)
    return Compute(product, attention, memory)


def measure_disk(folder: Path) -> Disk:
    """Rates of a temporary file in `folder`. Raises OSError when none can be written there."""
    chunk = bytearray(os.urandom(_CHUNK_BYTES))
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".speed-", buffering=0) as file:
        began = time.perf_counter()
        for number in range(_FILE_BYTES // _CHUNK_BYTES):
            chunk[:8] = number.to_bytes(8, "little")  # no two alike, for file systems that would keep one
            file.write(chunk)
        os.fsync(file.fileno())
        write = _FILE_BYTES / (time.perf_counter() - began)
        dropped = drop_cached([Path(file.name)])
        cold = _FILE_BYTES / _read(file, chunk) if dropped else None
        _read(file, chunk)
        warm = _FILE_BYTES / min(_read(file, chunk) for _ in range(3))
    return Disk(write, cold, warm, dropped)


def drop_cached(paths: Iterable[Path]) -> str:
    """Make the system forget the content of files, so that they are read from disk again. Returns how: "drop_caches"
    (everything that the machine had cached, where root may), "posix_fadvise" (these files only), "" (not at all)."""
    paths = list(paths)
    for path in paths:  # what is not written yet cannot be dropped
        with contextlib.suppress(OSError), path.open("rb") as file:
            os.fsync(file.fileno())
    if _DROP_CACHES.exists():
        with contextlib.suppress(OSError):
            _DROP_CACHES.write_text("1", encoding="ascii")
            return "drop_caches"
    if not hasattr(os, "posix_fadvise"):
        return ""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return "posix_fadvise"


def fill_cached(paths: Iterable[Path]) -> None:
    """Read files through, so that what fits is in the page cache."""
    buffer = bytearray(_CHUNK_BYTES)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def describe(device: torch.device, dtype: str) -> dict[str, Any]:
    """The machine, the versions that matter, and the commit where actqkv runs from a checkout."""
    return {
        "system": platform.platform(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "dtype": dtype,
        "python": platform.python_version(),
        "versions": {"actqkv": __version__, **{name: version(name) for name in ("torch", "transformers")}},
        "commit": commit(),
    }


def _best(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest run; the first does not count, for what is made ready in it."""
    run()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < _MIN_SECONDS and len(times) < 1000):
        synchronize(device)
        began = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done all that it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _read(file: Any, buffer: bytearray) -> float:
    """Seconds that an open file takes."""
    file.seek(0)
    began = time.perf_counter()
    while file.readinto(buffer):
        pass
    return time.perf_counter() - began
