import os
import sys
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before a kernel is defined: it is then interpreted

sys.path.insert(0, str(Path(__file__).parent / "engine"))  # for tiny, which several folders use


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models gain nothing from more, and equal sums then come out equal."""
    torch.set_num_threads(1)
