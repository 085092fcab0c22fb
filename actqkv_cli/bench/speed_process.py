"""Real processes, watched from outside: when their lines arrive, their peak memory, what the disk had to read."""

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from actqkv_cli.errors import ActqkvError

_SAMPLE_SECONDS = 0.02  # seconds between two looks at a process


@dataclass(frozen=True)
class Watched:
    """A process that has ended. result: its last event; first, wall: seconds from its start to the arrival of its first
    event of type "token" (None: there was none), and to its end; the rest: bytes, None where the system does not
    tell."""

    result: dict[str, Any]
    first: float | None
    wall: float
    from_disk: int | None
    peak_host_bytes: int | None
    peak_device_bytes: int | None

    def figures(self) -> dict[str, Any]:
        """All but the result."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "result"}


def actqkv(*words: str) -> list[str]:
    """The command line that runs this very actqkv."""
    return [sys.executable, "-m", "actqkv_cli", *words]


def watch(
    command: Sequence[str], env: Mapping[str, str], device_used: Callable[[], int] = lambda: 0, pid: int = 0
) -> Watched:
    """Run a command that prints JSON events, a line each, or one JSON object.

    pid: of the process to look at where it is not the command's own; device_used: see `device_memory`. Raises
    ActqkvError with the command's own message and exit code, else its last line of complaint, if it fails.
    """
    before = 0
    if pid:
        before = _from_disk(pid) or 0
        with contextlib.suppress(OSError):  # its peak begins anew
            Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
    used, first, lines = device_used(), None, list[str]()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as complaints:
        began = time.perf_counter()
        with (
            subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints,
                text=True, encoding="utf-8",
            ) as process,
            _terminated(process),
            _sampling(pid or process.pid, device_used) as peaks,
        ):  # fmt: skip
            assert process.stdout is not None
            for line in process.stdout:
                if first is None and line.startswith('{"type": "token"'):
                    first = time.perf_counter() - began
                lines.append(line)
            process.wait()
        wall = time.perf_counter() - began
        complaints.seek(0)
        complaint = complaints.read().strip().splitlines()[-1:] or [f"a process ended with {process.returncode}"]
    result = _last_object(lines)
    if process.returncode:
        error = result.get("error") or result
        failure = ActqkvError(error.get("message") or complaint[0], error.get("hint") or "")
        failure.exit_code, failure.kind = error.get("exit_code", 1), error.get("kind", failure.kind)
        raise failure
    from_disk = None if peaks.from_disk is None else peaks.from_disk - before
    return Watched(result, first, wall, from_disk, peaks.host, peaks.device - used if peaks.device else None)


def device_memory(device: Any) -> Callable[[], int]:
    """A function that tells how many bytes of a torch device are in use, by all processes; 0 for a CPU."""
    if device.type != "cuda":
        return lambda: 0
    import torch

    def used() -> int:
        free, total = torch.cuda.mem_get_info(device)
        return total - free

    return used


def _last_object(lines: Sequence[str]) -> dict[str, Any]:
    """The last event, or the object that all lines together are; nothing where there is neither."""
    for text in (lines[-1:], lines):
        with contextlib.suppress(ValueError):
            if isinstance(found := json.loads("".join(text)), dict):
                return found
    return {}


@dataclass
class _Peaks:
    """Bytes."""

    host: int | None = None
    device: int = 0
    from_disk: int | None = None


@contextlib.contextmanager
def _sampling(pid: int, device_used: Callable[[], int]) -> Iterator[_Peaks]:
    # The kernel keeps the peak itself, so a sample now and then misses nothing but the very end.
    peaks, ended = _Peaks(), threading.Event()

    def sample() -> None:
        while True:
            # Not getrusage: a child's peak there begins with what its parent took.
            kilobytes = _proc_field(pid, "status", "VmHWM:")
            peaks.host = kilobytes * 1024 if kilobytes else peaks.host
            peaks.from_disk = _from_disk(pid, peaks.from_disk)
            peaks.device = max(peaks.device, device_used())
            if ended.wait(_SAMPLE_SECONDS):
                break

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()
        peaks.from_disk = _from_disk(pid, peaks.from_disk)


@contextlib.contextmanager
def _terminated(process: "subprocess.Popen[str]") -> Iterator[None]:
    """Whatever happens meanwhile, the process does not outlive the body."""
    try:
        yield
    finally:
        process.terminate()  # which leaves alone one that has ended
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _from_disk(pid: int, before: int | None = None) -> int | None:
    """Bytes that a process has had read from disk; `before` where it cannot be known any more."""
    found = _proc_field(pid, "io", "read_bytes:")
    return before if found is None else found


def _proc_field(pid: int, file: str, name: str) -> int | None:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/{file}").read_text(encoding="ascii", errors="replace").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith(name)), None)
    return None
