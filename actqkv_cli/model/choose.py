"""The model that is taken where the user names none."""

from dataclasses import dataclass

import psutil
import torch

from actqkv_cli.model.catalogue import CATALOGUE, KnownModel
from actqkv_cli.model.load import choose_device, choose_dtype


@dataclass(frozen=True)
class Choice:
    """`free`: bytes of memory that can be had on the device, if need be from those `held` by an idle worker; `needed`:
    what the model takes of them in `dtype`."""

    model: KnownModel
    dtype: str
    device: torch.device
    free: int
    held: int

    @property
    def needed(self) -> int:
        """Bytes that the model takes in `dtype`."""
        return self.model.memory_bytes(self.dtype)

    @property
    def crowded(self) -> bool:
        """Whether it fits only once the worker has ended."""
        return self.free - self.held < self.needed <= self.free

    @property
    def reason(self) -> str:
        """In words."""
        memory = f"{self.free / 1e9:.{0 if self.free > 1e10 else 1}f} GB of free memory"
        if self.needed > self.free:
            return f"the smallest, though it may not fit in {memory}"
        return f"the largest that fits in {memory}"


def choose(device: str, dtype: str, worker: int | None = None) -> Choice:
    """The largest model of the catalogue that fits in the memory that is free now, or the smallest if none does.

    worker: the process id of an idle worker, whose memory counts as free. Else the model that it keeps loaded would
    push the choice down, and the next document be read by a smaller model than the last.
    Raises UsageError for a device or number type that cannot be used.
    """
    chosen_device = choose_device(device)
    chosen_dtype, held = choose_dtype(dtype, chosen_device), 0
    if worker is not None and chosen_device.type == "cpu":  # what a process holds of a GPU cannot be told everywhere
        held = _held(worker)
    free = free_memory(chosen_device) + held
    fitting = [model for model in CATALOGUE if model.memory_bytes(chosen_dtype) <= free]
    return Choice(fitting[-1] if fitting else CATALOGUE[0], chosen_dtype, chosen_device, free, held)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def _held(process: int) -> int:
    try:
        memory = psutil.Process(process).memory_info()
    except psutil.Error:
        return 0
    # Weights in the type that they are stored in are mapped from their file: that is shared, and counts as free.
    return int(memory.rss - getattr(memory, "shared", 0))
