"""`python -m actqkv_kernels.bench`: every kernel is checked against its reference, and timed if it is right.

Where there is no GPU, small calls are checked in Triton's interpreter, which is never timed; the torch path is. The
kernels of the full-size calls are then compiled for GPUs that are not here.
"""

import os

import torch

# Before anything imports triton, which then knows whether kernels are interpreted.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")
