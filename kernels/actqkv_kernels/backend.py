"""Which implementation of an operation runs: torch's, which works everywhere, or the Triton kernel."""

import functools
import os
import warnings
from importlib import import_module
from typing import Literal, get_args

import torch

Backend = Literal["auto", "torch", "triton"]
VARIABLE = "ACTQKV_KERNELS"  # what `auto` means: one of the above
compiling = False  # within `ahead_of_time.compiling_for`: kernels are compiled, and none runs
_OLDEST_TRITON = (3, 6)  # the kernels were compiled with this and with newer ones


class SlowerPath(UserWarning):
    """Work is done in a slower way than was to be expected."""


class BackendUnavailable(RuntimeError):
    """The backend that was asked for cannot run here."""


def runs_triton(backend: Backend, operation: str, device: torch.device, unfit: str = "") -> bool:
    """Whether the Triton kernel is to run, for tensors on `device`. unfit: why it cannot take these arguments.

    A backend that was asked for, here or by the environment variable `ACTQKV_KERNELS`, runs or raises: ValueError for
    a name that there is not, BackendUnavailable. `auto` takes the kernel on a GPU; where it cannot, it says so once.
    """
    said: str = (os.environ.get(VARIABLE) or "auto") if backend == "auto" else backend
    if said == "torch" or (said == "auto" and device.type != "cuda"):
        return False
    if said not in get_args(Backend):
        raise ValueError(f"there is no backend {said!r}: it is one of {', '.join(get_args(Backend))}")
    if backend == "auto" and device.type == "cpu" and not (compiling or interpreted()) and torch.cuda.is_available():
        return False  # some numbers stay on the host where the kernels run on a GPU
    reason = unfit or triton_missing(device)
    if not reason:
        return True
    if said == "triton":
        raise BackendUnavailable(f"{operation} cannot run in triton: {reason}")
    _say_once(f"{operation} runs in torch, which is slower: {reason}")
    return False


def triton_missing(device: torch.device) -> str:
    """Why no Triton kernel runs on a device; empty if they do."""
    return _triton_missing(device, compiling or interpreted())


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU (`TRITON_INTERPRET=1`)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _triton_missing(device: torch.device, without_gpu: bool) -> str:
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # Triton 3.9 warns where nothing is said
    try:
        version = import_module("triton").__version__
    except ImportError as error:
        return f"triton cannot be imported ({error})"
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_TRITON:
        return f"triton {version} is too old, it must be {'.'.join(map(str, _OLDEST_TRITON))} or newer"
    if device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than Triton supports"
    if device.type != "cuda" and not without_gpu:
        return f"there is no GPU behind {device}; TRITON_INTERPRET=1 runs the kernels without one, very slowly"
    return ""


@functools.cache
def _say_once(message: str) -> None:
    warnings.warn(message, SlowerPath, stacklevel=4)
