"""What the tests of all kernels share: where they run, in which types, and how far they may be off."""

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # on the CPU the kernels are interpreted
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Random numbers on the device, the same for the same arguments."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw).to(dtype).to(DEVICE)


def assert_near(found: Tensor, expected: Tensor, ratio: float) -> None:
    """Equal within `ratio` of the expected values' root mean square on average, ten times that one by one."""
    assert found.shape == expected.shape
    assert found.device == expected.device
    found, expected = found.double(), expected.double()
    assert found.isfinite().all()
    error, size = found - expected, expected.square().mean().sqrt().clamp(min=1e-30)
    assert error.square().mean().sqrt() / size <= ratio, f"off by {float(error.square().mean().sqrt() / size):.2e}"
    assert error.abs().max() / size <= 10 * ratio, f"the worst is off by {float(error.abs().max() / size):.2e}"
