"""The machine, the versions and the commit that figures are of."""

import contextlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from actqkv_kernels.provenance import commit, processor, told


def describe(device: str) -> dict[str, Any]:
    """`machine` (with its `gpu`, None for "cpu"), `versions` and `commit`."""
    return {
        "machine": {
            "system": platform.platform(),
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": _gpu() if device == "cuda" else None,
        },
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("actqkv", "torch", "triton", "numpy")},
            "cuda": torch.version.cuda,
        },
        "commit": commit(),
    }


def _gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cache_bytes": properties.L2_cache_size,
        "driver": told("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    }


def _version(package: str) -> str | None:
    with contextlib.suppress(PackageNotFoundError):
        return version(package)
    return None
