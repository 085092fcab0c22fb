"""Which implementation of a layer's attention runs: on gathered tensors, or by the kernels on pages in place."""

from typing import get_args

from torch import Tensor

from actqkv_cli.engine.blocks import BlockPool
from actqkv_cli.engine.layer import LayerAttention, Positions, Select
from actqkv_cli.engine.layout import Layout
from actqkv_cli.engine.paged_layer import PagedLayer
from actqkv_cli.errors import UsageError
from actqkv_cli.model.attention import Rotary
from actqkv_kernels import Workspace
from actqkv_kernels.backend import VARIABLE, Backend, BackendUnavailable, runs_triton

Layer = LayerAttention | PagedLayer


def paged(rotary: Rotary) -> bool:
    """Whether the kernels run, for a model with this rotation. Raises UsageError if they must and cannot."""
    unfit = "" if rotary.in_halves else "this model's rotary positions do not turn a head's halves"
    try:
        return runs_triton("auto", "attention over pages", rotary.device, unfit)
    except (BackendUnavailable, ValueError) as error:
        raise UsageError(str(error), f"{VARIABLE} is one of {', '.join(get_args(Backend))}") from error


def make_layers(
    pool: BlockPool,
    count: int,
    select: Select,
    rotary: Rotary,
    layout: Layout,
    positions: Positions,
    gaps: Tensor | None = None,
    workspace: Workspace | None = None,
) -> list[Layer]:
    """The layers of one row, over the blocks of a pool. gaps: tokens that are no one's, int64 on the CPU."""
    gaps = gaps if gaps is not None and len(gaps) else None
    if paged(rotary):
        return [PagedLayer(layer, pool, select, rotary, layout, positions, gaps) for layer in range(count)]
    space = workspace or Workspace()
    return [LayerAttention(layer, pool, select, rotary, layout, positions, space, gaps) for layer in range(count)]
