"""Real processes, watched from outside: when their lines arrive, their peak memory, what the disk had to read."""

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actqkv_cli.errors import ActqkvError

_EVERY = 0.02  # seconds between two looks at a process


@dataclass(frozen=True)
class Watched:
    """A process that has ended. wall, first: seconds from its start to its end, and to the arrival of its first event
    of type "token" (None: there was none); done: the last event; peak_host, peak_device, from_disk: bytes, None where
    the system does not tell."""

    wall: float
    first: float | None
    done: dict[str, Any]
    peak_host: int | None
    peak_device: int | None
    from_disk: int | None


def actqkv(*words: str) -> list[str]:
    """The command line that runs this very actqkv."""
    return [sys.executable, "-m", "actqkv_cli", *words]


def watch(command: Sequence[str], env: Mapping[str, str], device_used: Callable[[], int], pid: int = 0) -> Watched:
    """Run a command that prints JSON events, a line each, or one JSON object.

    pid: of the process to look at where it is not the command's own; device_used: see `device_memory`. Raises
    ActqkvError with the command's own message and exit code, else its last line of complaint, if it fails.
    """
    before = _from_disk(pid) or 0 if pid else 0
    if pid:
        _forget_peak(pid)
    used, first, lines = device_used(), None, list[str]()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as complaints:
        began = time.perf_counter()
        with (
            subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints,
                text=True, encoding="utf-8",
            ) as process,
            _stopped(process),
            _looking(pid or process.pid, device_used) as seen,
        ):  # fmt: skip
            assert process.stdout is not None
            for line in process.stdout:
                if first is None and line.startswith('{"type": "token"'):
                    first = time.perf_counter() - began
                lines.append(line)
            process.wait()
        wall = time.perf_counter() - began
        complaints.seek(0)
        told = complaints.read().strip().splitlines()
    done = _last_object(lines)
    if process.returncode:
        error = done.get("error") or done
        complaint = told[-1] if told else f"a process ended with {process.returncode}"
        failure = ActqkvError(error.get("message") or complaint, error.get("hint") or "")
        failure.exit_code, failure.kind = error.get("exit_code", 1), error.get("kind", failure.kind)
        raise failure
    from_disk = None if seen.from_disk is None else seen.from_disk - before
    return Watched(wall, first, done, seen.host, seen.device - used if seen.device else None, from_disk)


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
class _Seen:
    host: int | None = None
    device: int = 0
    from_disk: int | None = None


@contextlib.contextmanager
def _looking(pid: int, device_used: Callable[[], int]) -> Iterator[_Seen]:
    # The kernel keeps the peak itself, so a look now and then misses nothing but the very end.
    seen, ended = _Seen(), threading.Event()

    def look() -> None:
        while True:
            seen.host = _peak(pid) or seen.host
            seen.from_disk = found if (found := _from_disk(pid)) is not None else seen.from_disk
            seen.device = max(seen.device, device_used())
            if ended.wait(_EVERY):
                break

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
        seen.from_disk = found if (found := _from_disk(pid)) is not None else seen.from_disk


@contextlib.contextmanager
def _stopped(process: "subprocess.Popen[str]") -> Iterator[None]:
    """Whatever happens meanwhile, the process does not outlive the body."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _peak(pid: int) -> int | None:
    """Not getrusage: a child's there begins with what its parent took."""
    kilobytes = _field(Path(f"/proc/{pid}/status"), "VmHWM:")
    return None if kilobytes is None else kilobytes * 1024


def _forget_peak(pid: int) -> None:
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def _from_disk(pid: int) -> int | None:
    return _field(Path(f"/proc/{pid}/io"), "read_bytes:")


def _field(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), None)
