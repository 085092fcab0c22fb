"""Ingest's main loop: read the document window by window, and leave its blocks in the store."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from actqkv_cli.engine.blocks import BlockPool, GrowingBlocks
from actqkv_cli.engine.layer import Layer, Select
from actqkv_cli.engine.layout import Layout
from actqkv_cli.model.causal_lm import AttentionCall, CausalLM
from actqkv_cli.model.rotary import Rotary
from actqkv_cli.retrieval.policies.actqkv import top_blocks
from actqkv_cli.store.manifest import Geometry, ReadingSettings
from actqkv_cli.store.writer import DocumentWriter
from actqkv_kernels import Workspace

_OBSERVED = 32  # of the document's last queries: SnapKV's window


@dataclass(frozen=True)
class Prefilled:
    """What stays in memory of a document that was read.

    representatives: `(L, N, 1, Hkv, d)`; l1: `(L, N, 2, Hkv, d)`, see `store.tensors`; where baselines are wanted
    also received: `(L, T)` fp32, attention that each token received, all heads and windows, and last_queries:
    `(L, H, <= 32, d)`, un-rotated.
    """

    representatives: Tensor
    l1: Tensor
    received: Tensor
    last_queries: Tensor


class _ReadingLayer:
    """A layer of a document that is being read: attends, and keeps what the window computed."""

    def __init__(self, layer: int, attention: Layer, blocks: GrowingBlocks, reading: ReadingSettings) -> None:
        self._layer = layer
        self._attention = attention
        self._blocks = blocks
        self._anchor = reading.representative == "anchor"
        self._baselines = reading.baselines
        attention.return_mass = self._anchor or self._baselines
        self.received = torch.empty(0)
        self.last_queries = torch.empty(0)
        self.position = 0

    def begin(self, position: int, window: int) -> None:
        self.position = position
        self._attention.begin(position, window)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        self._blocks.append(self._layer, self.position, key, value)
        out = self._attention.attend(query, key, value, call)
        if self._anchor:
            self._blocks.add_mass(self._layer, self._attention.near_first, self._attention.near_mass)
        if self._baselines:
            received = self._attention.document_mass(self.position + key.shape[1])
            received[: len(self.received)] += self.received
            self.received = received
            seen = torch.cat([self.last_queries.to(query), query], dim=1) if len(self.last_queries) else query
            self.last_queries = seen[:, -_OBSERVED:].clone()
        return out


def prefill(
    model: CausalLM,
    ids: Tensor,
    writer: DocumentWriter,
    geometry: Geometry,
    reading: ReadingSettings,
    progress: Callable[[int], None] = lambda position: None,
) -> Prefilled:
    """Read tokens `ids` `(T,)` into segments, from where an earlier ingest stopped. Of memory only that of the small
    tensors of `Prefilled` grows with T.

    `progress` is told the position after each window. Raises ValueError for a window that is not whole blocks, or of
    which a segment is not a multiple.
    """
    if reading.window % geometry.block_size or geometry.segment_tokens % reading.window:
        raise ValueError("a window must be whole blocks, and a segment whole windows")
    layout = Layout(geometry.block_size, reading.sink, reading.local, reading.budget)
    blocks = GrowingBlocks(writer, geometry, reading, len(ids), model.device)
    position = blocks.resume_at
    progress(position)
    select = _selection(reading, layout, blocks, lambda: position)
    pool = BlockPool(blocks.blocks, geometry.layers, blocks.total_blocks, model.device)
    with closing(blocks), torch.inference_mode():
        rotary, workspace = Rotary(model), Workspace()
        layers = [
            _ReadingLayer(
                number, Layer(number, pool, select, rotary, layout, reading.positions, workspace), blocks, reading
            )
            for number in range(geometry.layers)
        ]
        pool.reserve(_kept(reading, layout, blocks))  # blocks that come back stay a while
        ids = ids.to(model.device, torch.int64)
        while position < len(ids):
            window = ids[position : position + reading.window]
            for layer in layers:
                layer.begin(position, len(window))
            model.hidden_states(window[None], [layers])  # no position of a document needs logits
            position += len(window)
            blocks.advance(position)
            progress(position)
    return Prefilled(
        blocks.representatives,
        blocks.l1,
        torch.stack([layer.received for layer in layers]),
        torch.stack([layer.last_queries for layer in layers]),
    )


def _kept(reading: ReadingSettings, layout: Layout, blocks: GrowingBlocks) -> int:
    """How many blocks of a layer to keep at hand."""
    if reading.prefill == "full":
        return blocks.total_blocks
    return min(blocks.total_blocks, 2 * layout.retrieved_blocks + reading.sink // layout.block_size)


def _selection(reading: ReadingSettings, layout: Layout, blocks: GrowingBlocks, position: Callable[[], int]) -> Select:
    """Windowed prefill retrieves as ActQKV does, the same number of blocks for every layer; full takes them all."""

    def everything(layer: int, queries: Tensor) -> Tensor:
        candidates = layout.candidates(position())
        return torch.arange(candidates.start, candidates.stop)

    def probe(layer: int, queries: Tensor) -> Tensor:
        return top_blocks(
            queries,
            blocks.representatives[layer],
            layout.candidates(position()),
            layout.retrieved_blocks,
            reading.score,
        )

    return everything if reading.prefill == "full" else probe
