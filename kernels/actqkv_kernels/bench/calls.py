"""One call of an operation, and the random numbers that it is made of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actqkv_kernels.quantization import Quantized


@dataclass(frozen=True)
class Shapes:
    """A model's sizes and what is fed to it. block: tokens; sink, local, retrieved: blocks; window: tokens;
    divisor: what the blocks of a document are divided by."""

    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    block: int = 32
    sink: int = 2
    local: int = 16
    retrieved: int = 46
    window: int = 2048
    layers: int = 32
    divisor: int = 1

    def blocks(self, count: int) -> int:
        """How many blocks stand for a document of `count`."""
        return max(count // self.divisor, 20)


@dataclass(frozen=True)
class Call:
    """Two ways to the same outputs. nbytes: bytes that any way must read and write; operations: that matrix units could
    do, None where there is nothing for them."""

    run: Callable[[], Any]
    reference: Callable[[], Any]
    shape: str
    nbytes: int
    operations: int | None = None


class Draw:
    """Random inputs on a device, the same for the same seed."""

    def __init__(self, device: str, seed: int) -> None:
        self.device = device
        self._generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(shape, dtype=dtype, device=self.device, generator=self._generator)

    def permutation(self, count: int) -> Tensor:
        """The numbers below `count` in random order, int32."""
        return torch.randperm(count, dtype=torch.int32, device=self.device, generator=self._generator)


Make = Callable[[Shapes, Draw], Call]


def bytes_of(*parts: Tensor | Quantized) -> int:
    """How many bytes tensors take, and quantized ones with their scales."""
    return sum(part.nbytes if isinstance(part, Tensor) else part.codes.nbytes + part.scales.nbytes for part in parts)
