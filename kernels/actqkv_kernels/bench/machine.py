"""The machine, the versions and the commit that figures are of."""

import contextlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def describe(device: str) -> dict[str, Any]:
    return {
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": _gpu() if device == "cuda" else None,
        },
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("actqkv", "torch", "triton", "numpy")},
            "cuda": torch.version.cuda,
        },
        "commit": _commit(),
    }


def _gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cache_bytes": properties.L2_cache_size,
        "driver": _told("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    with contextlib.suppress(PackageNotFoundError):
        return version(package)
    return None


def _commit() -> str | None:
    """The commit, with "+" if files were changed since; None if this is not a checkout."""
    root = Path(__file__).parents[3]
    commit = _told("git", "-C", str(root), "rev-parse", "--short=12", "HEAD") if (root / ".git").exists() else None
    changed = commit and _told("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return commit and commit + ("+" if changed else "")


def _told(*command: str) -> str | None:
    """What a command prints; None if there is none, or it fails."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    return None
