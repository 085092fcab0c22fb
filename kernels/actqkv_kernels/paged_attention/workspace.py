"""Memory that outlives a call: fresh pages for a window's scores cost as much as the attention itself."""

from typing import Any

import torch
from torch import Tensor


class Workspace:
    """One buffer, grown to the largest request. What it holds is lost at the next `take`. kept: what an implementation
    keeps from call to call."""

    def __init__(self) -> None:
        self.kept: Any = None
        self._buffer: Tensor | None = None

    def take(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised tensor, valid until the next call."""
        size = torch.Size(shape).numel()
        buffer = self._buffer
        if buffer is None or buffer.numel() < size or buffer.dtype != dtype or buffer.device != device:
            buffer = self._buffer = torch.empty(size, dtype=dtype, device=device)
        return buffer[:size].view(shape)
