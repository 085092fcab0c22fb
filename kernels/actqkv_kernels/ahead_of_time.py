"""Compile kernels for a GPU that is not here: what the interpreter accepts, a compiler may refuse.

Within `compiling_for` the operations' own launchers run with `backend="triton"` as they always do, on tensors of
the CPU; every kernel that they launch is compiled to machine code, and none runs, so their outputs hold nothing.
"""

import functools
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actqkv_kernels import backend


@dataclass(frozen=True)
class Machine:
    """A compiled kernel. registers, stack: per thread, in registers and bytes (a stack of more than 0 is a spill);
    shared: bytes per program; matrix_units: whether it uses them."""

    name: str
    registers: int
    stack: int
    shared: int
    matrix_units: bool


class _NoGpu:
    """As much of a Triton driver as compiling asks for."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return int(self._target.arch)  # kernels are kept by device, and this one's are not another's

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiling_for(capability: int) -> Iterator[list[Machine]]:
    """Compile for NVIDIA GPUs of a compute capability (90: Hopper). Yields what was compiled, filled as it comes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    if triton.knobs.runtime.interpret:
        raise RuntimeError("with TRITON_INTERPRET=1 nothing is compiled")
    compiled: dict[int, Machine] = {}
    found: list[Machine] = []
    run, before = JITFunction.run, driver._active  # `active` would look for a GPU

    @functools.wraps(run)
    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        if id(kernel) not in compiled:
            compiled[id(kernel)] = _machine(kernel)
            found.append(compiled[id(kernel)])
        return kernel

    JITFunction.run = compile_only
    backend.compiling = True
    driver.set_active(_NoGpu(GPUTarget("cuda", capability, 32)))
    try:
        yield found
    finally:
        JITFunction.run = run
        backend.compiling = False
        driver.set_active(before)


def _machine(kernel: Any) -> Machine:
    ptx = kernel.asm["ptx"]
    usage = _resource_usage(kernel.asm["cubin"])
    return Machine(
        name=kernel.metadata.name,
        registers=int(usage["REG"]),
        stack=int(usage["STACK"]),
        shared=int(kernel.metadata.shared),
        matrix_units="wgmma" in ptx or "mma.sync" in ptx,
    )


def _resource_usage(cubin: bytes) -> dict[str, str]:
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(re.findall(r"(\w+):(\d+)", told))
