"""Which processor figures are of, and which commit."""

import contextlib
import platform
import subprocess
from pathlib import Path


def processor() -> str:
    """Its name, as the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit, with "+" if files were changed since; None if this is not a checkout."""
    root = Path(__file__).parents[2]
    found = told("git", "-C", str(root), "rev-parse", "--short=12", "HEAD") if (root / ".git").exists() else None
    changed = found and told("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return found and found + ("+" if changed else "")


def told(*command: str) -> str | None:
    """What a command prints; None if there is none, or it fails."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    return None
