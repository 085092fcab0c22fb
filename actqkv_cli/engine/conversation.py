"""A conversation over documents: what was asked and answered stays, and falls under retrieval where it grows long.

Turns continue the document. Their keys and values, as they were computed, form blocks behind its own; the local window
ends where the next question begins, so the newest turns are in it, and older ones are blocks like all others.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from actqkv_cli.engine.context import Context, context_of
from actqkv_cli.engine.document import OpenDocument
from actqkv_cli.engine.session import Run
from actqkv_cli.retrieval.policy import head_rows
from actqkv_cli.store.manifest import Manifest
from actqkv_kernels import mean_representatives


class _Turns:
    """The part of a context that was said. states: of each layer, `(2, Hkv, T, d)`, keys un-rotated; it begins with
    what the document's last block holds, so that it begins with a block. Words in it are not searched for."""

    def __init__(self, states: Sequence[Tensor], manifest: Manifest, query_heads: int) -> None:
        size = manifest.geometry.block_size
        self.tokens = states[0].shape[2]
        count = -(-self.tokens // size)
        padded = [pad(layer, (0, 0, 0, count * size - self.tokens)) for layer in states]
        self._blocks = [layer.unflatten(2, (count, size)).permute(2, 0, 1, 3, 4) for layer in padded]
        held = (self.tokens - torch.arange(count) * size).clamp(max=size).to(states[0].device)
        self.representatives = torch.stack(
            [mean_representatives(blocks[None, :, 0], held)[0] for blocks in self._blocks]
        )
        rows = head_rows(manifest.retrieval_heads, query_heads, manifest.geometry.kv_heads)
        self.head_keys = torch.stack([states[layer][0, head] for layer, head in rows]) if rows else None
        self.lexical: Callable[[str], Tensor] = lambda question: torch.zeros(count)

    def blocks(self, layer: int, ids: Tensor) -> Tensor:
        return self._blocks[layer][ids.to(self._blocks[layer].device)]

    def read_ahead(self, layer: int, ids: Tensor) -> None:
        """They are in memory."""


class Conversation:
    """`context` is what the next question is put to. Raises what `context_of` raises."""

    def __init__(self, documents: Sequence[OpenDocument], model: PreTrainedModel) -> None:
        self._model = model
        self._documents = tuple(documents)
        self._states: list[Tensor] = []
        self.context: Context = context_of(self._documents, model)
        self.turns = 0

    def add(self, run: Run) -> None:
        """Keep a question and as much of its answer as was fed."""
        manifest = self._documents[-1].reader.manifest
        before = self._states or self._begun_block(manifest)
        self._states = [torch.cat([old, layer.fed], dim=2) for old, layer in zip(before, run.layers, strict=True)]
        turns = _Turns(self._states, manifest, self._model.config.num_attention_heads)
        self.context = context_of(self._documents, self._model, turns)
        self.turns += 1

    def _begun_block(self, manifest: Manifest) -> list[Tensor]:
        """Keys and values of the document's tokens behind its last whole block, of each layer."""
        rest = manifest.tokens % manifest.geometry.block_size
        last = torch.tensor([manifest.block_count - 1])
        layers = range(manifest.geometry.layers)
        return [self._documents[-1].blocks(layer, last)[0, :, :, :rest].clone() for layer in layers]
