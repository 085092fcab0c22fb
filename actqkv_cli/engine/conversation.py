"""A conversation over documents: what was asked and answered stays, and falls under retrieval where it grows long.

Turns continue the document. Their keys and values, as they were computed, form blocks behind its own. The newest of
them are the local window of the next question; older ones are blocks like all others.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from actqkv_cli.engine.context import Context, context_of
from actqkv_cli.engine.document import OpenDocument
from actqkv_cli.engine.run import Run
from actqkv_cli.model.causal_lm import CausalLM
from actqkv_cli.retrieval.policy import head_rows
from actqkv_cli.store.manifest import Manifest
from actqkv_kernels import mean_representatives


class _Turns:
    """The part of a context that was said. states: of each layer, `(2, Hkv, T, d)`, keys un-rotated. Its words are not
    searched, nor its sentences completed."""

    def __init__(self, states: Sequence[Tensor], manifest: Manifest, query_heads: int) -> None:
        size = manifest.geometry.block_size
        self.tokens = states[0].shape[2]
        count = -(-self.tokens // size)
        padded = [pad(layer, (0, 0, 0, count * size - self.tokens)) for layer in states]
        self._blocks = [layer.unflatten(2, (count, size)).permute(2, 0, 1, 3, 4) for layer in padded]
        held = (self.tokens - torch.arange(count) * size).clamp(max=size).to(states[0].device)
        rows = head_rows(manifest.retrieval_heads, query_heads, manifest.geometry.kv_heads)

        def representatives() -> Tensor:
            return torch.stack([mean_representatives(blocks[None, :, 0], held)[0] for blocks in self._blocks])

        def head_keys() -> Tensor:
            return torch.stack([states[layer][0, head] for layer, head in rows])

        self._made = {"representatives": representatives, **({"head_keys": head_keys} if rows else {})}
        self.lexical: Callable[[str], Tensor] = lambda question: torch.zeros(count)
        self.sentences: Callable[[int], range] = lambda block: range(block * size, min((block + 1) * size, self.tokens))

    def load(self, names: Collection[str]) -> Mapping[str, Tensor]:
        return {name: self._made[name]() for name in names if name in self._made}

    def blocks(self, layer: int, ids: Tensor) -> Tensor:
        return self._blocks[layer][ids.to(self._blocks[layer].device)]

    def prefetch(self, layer: int, ids: Tensor) -> None:
        """They are in memory."""


class Conversation:
    """`context` is what the next question is put to. Raises what `context_of` raises."""

    def __init__(self, documents: Sequence[OpenDocument], model: CausalLM) -> None:
        self._model = model
        self._documents = tuple(documents)
        self._states: list[Tensor] = []
        self.context: Context = context_of(self._documents, model)

    def add(self, run: Run) -> None:
        """Keep a question and as much of its answer as was fed."""
        manifest = self._documents[-1].reader.manifest
        fed = [layer.fed.clone() for layer in run.layers]
        self._states = [torch.cat(both, dim=2) for both in zip(self._states, fed, strict=True)] if self._states else fed
        turns = _Turns(self._states, manifest, self._model.config.num_attention_heads)
        self.context = context_of(self._documents, self._model, turns)
