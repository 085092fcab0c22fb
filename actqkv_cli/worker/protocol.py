"""What client and worker say: JSON objects, one a line, and what must be equal for them to understand each other.

client → worker   run (a command) with fingerprint · line · stop · status · shutdown
worker → client   begun · out · err · prompt · exit · replaced · declined · status
"""

import contextlib
import importlib.util
import json
import os
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import Any

from actqkv_cli import __version__

_MAX_FRAME_BYTES = 1 << 28
# Libraries read these when they are imported or started, so a running worker cannot take them over.
_READ_AT_START = (
    "CUDA", "DYLD_", "GOMP_", "HF_", "HIP_", "HUGGINGFACE_", "KMP_", "LD_", "MALLOC_", "MKL_", "NVIDIA_", "OMP_",
    "OPENBLAS_", "PYTHON", "PYTORCH_", "ROCR_", "SAFETENSORS_", "TOKENIZERS_", "TORCH", "TRANSFORMERS_", "TRITON_",
)  # fmt: skip
_FOLDERS_READ_AT_START = ("HOME", "XDG_CACHE_HOME")  # where Hugging Face's cache is


class Connection:
    """One end of a socket. Both ends may be gone at any time: that is told, and never raised."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._received = bytearray()
        self._sending = threading.Lock()

    def set_timeouts(self, receive: float = 0, send: float = 0) -> None:
        """Seconds after which either gives up; 0: never. Not settimeout(), which knows only one for both."""
        for option, seconds in ((socket.SO_RCVTIMEO, receive), (socket.SO_SNDTIMEO, send)):
            self._socket.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(seconds), int(seconds % 1 * 1e6)))

    def send(self, **frame: Any) -> bool:
        """False if the other end has gone, or has not read for as long as the time-out."""
        data = json.dumps(frame).encode() + b"\n"  # ASCII: undecodable bytes of arguments survive as lone surrogates
        with self._sending:
            try:
                self._socket.sendall(data)
            except OSError:
                self.hang_up()  # a frame may be half sent: nothing can follow it
                return False
        return True

    def receive(self) -> dict[str, Any] | None:
        """The next frame; None if the other end has gone or talks nonsense. Raises TimeoutError."""
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            if searched > _MAX_FRAME_BYTES:
                return None
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                raise TimeoutError from None
            except OSError:
                return None
            if not data:
                return None
            self._received += data
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        try:
            frame = json.loads(line)
        except ValueError:
            return None
        return frame if isinstance(frame, dict) else None

    def hang_up(self) -> None:
        """Both ends then find that the other has gone; a thread that receives here wakes up."""
        with contextlib.suppress(OSError):  # it was down already
            self._socket.shutdown(socket.SHUT_RDWR)

    def peer(self) -> tuple[int | None, int | None]:
        """Process and user at the other end; None for what the system does not tell. Raises OSError."""
        if hasattr(socket, "SO_PEERCRED"):
            pid, uid, _ = struct.unpack("3i", self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return pid, uid
        if hasattr(socket, "LOCAL_PEERCRED"):  # macOS and BSD: struct xucred begins with a version and the user
            return None, struct.unpack("2I", self._socket.getsockopt(0, socket.LOCAL_PEERCRED, 76)[:8])[1]
        return None, None

    def is_of_this_user(self) -> bool:
        """As far as the system tells: the socket's folder keeps others out anyway. Raises OSError."""
        return self.peer()[1] in (os.getuid(), None)

    def close(self) -> None:
        self._socket.close()


def fingerprint() -> dict[str, Any]:
    """What must be equal in client and worker for the worker to answer as the client's own process would."""
    names = sorted(name for name in os.environ if name.startswith(_READ_AT_START) or name in _FOLDERS_READ_AT_START)
    return {
        "version": __version__,
        "code": _code(),
        "Python": [sys.prefix, sys.version],
        **{name: os.environ[name] for name in names},
    }


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """The names of what differs between two fingerprints; "" if nothing does."""
    return ", ".join(sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)))


def _code() -> list[int]:
    """Newest change (ns), bytes and number of our own modules: an install over a running worker must be noticed."""
    newest = size = count = 0
    for package in ("actqkv_cli", "actqkv_kernels"):
        found = importlib.util.find_spec(package)
        for folder in (found and found.submodule_search_locations) or []:
            for parent, _, names in os.walk(folder):
                for name in names:
                    if name.endswith(".py"):
                        state = Path(parent, name).stat()
                        newest, size, count = max(newest, state.st_mtime_ns), size + state.st_size, count + 1
    return [newest, size, count]
