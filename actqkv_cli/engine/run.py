"""One question in progress: its layers, what it attends to, and the next token's logits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from actqkv_cli.engine.context import Context, Source
from actqkv_cli.engine.layer import Layer
from actqkv_cli.engine.layout import Layout
from actqkv_cli.engine.recorded import RecordedStep, recordable
from actqkv_cli.model.prompt import EncodedQuestion
from actqkv_cli.retrieval.lexical import coverage
from actqkv_cli.retrieval.policies.heads import block_sums
from actqkv_cli.retrieval.policy import RetrievalPolicy

Forward = Callable[[Sequence[Sequence[Layer]], Tensor], Tensor]
"""(the layers of each row, tokens `(R, W)`) -> logits `(R, 1, V)` fp32 of the last of them."""


@dataclass(eq=False)
class Run:
    """Made by `Session.run`; its pages are let go by `close`, or at the session's end. logits: `(V,)` fp32, those of
    the next token; ranking: a score for each block, see `RetrievalPolicy.ranking`."""

    context: Context
    layout: Layout
    policy: RetrievalPolicy
    question: EncodedQuestion
    layers: list[Layer]
    capacity: int
    forward: Forward
    step_runs: Callable[[Sequence["Run"], Sequence[int]], None]

    def __post_init__(self) -> None:
        self.retrieve_seconds = 0.0
        self.closed = False
        self.logits = self.ranking = torch.empty(0)
        self._recorded: RecordedStep | None = None

    def begin(self, step: Literal["scout", "question"]) -> list[Layer]:
        """Make ready for a pass over the question; returns the layers that it goes through."""
        layers = self.layers[: self.policy.scout_layers] if step == "scout" else self.layers
        for layer in layers:
            layer.begin(self.context.tokens, self.capacity)
            layer.return_mass = step == "question"
        self.policy.begin(step)
        return layers

    def finish_question(self, logits: Tensor) -> None:
        """The question has gone through all layers: keep the next token's logits `(V,)` and rank the blocks."""
        context = self.context
        self.logits = logits
        mass = torch.stack([layer.document_mass(context.tokens) for layer in self.layers]).mean(dim=0)
        mass /= context.resident.query_heads * len(self.question.ids)
        mass[context.unranked.to(mass.device)] = 0
        self.ranking = self.policy.ranking(block_sums(mass, self.layout.block_size).cpu())
        for layer in self.layers:
            layer.return_mass = False

    def step(self, token: int) -> Tensor:
        """Feed one token; returns (and keeps) the next token's logits `(V,)` fp32."""
        self.step_runs([self], [token])
        return self.logits

    def step_recorded(self, token: int) -> Tensor | None:
        """Feed a token by a recorded step: the next one's logits `(V,)`, or None where that cannot be."""
        with torch.inference_mode():
            if self._recorded is None or not self._recorded.fits():
                self._recorded = None  # what it reads goes before another is made
                if not recordable(self.layers, self.policy):
                    return None
                self._recorded = RecordedStep(self.layers, self.policy, self.forward)
            logits = self._recorded.step(token)
        if logits is None:
            self._recorded = None
        return logits

    def close(self) -> None:
        """Let go of the pages that it attends to. May be called twice."""
        self.closed = True
        self._recorded = None
        for layer in self.layers:
            layer.close()

    @property
    def blocks_of_layers(self) -> list[Tensor]:
        """Ids of the retrieved blocks that each layer attends to now."""
        return [layer.chosen_blocks for layer in self.layers]

    @property
    def attended(self) -> set[int]:
        """The blocks that some layer attends to: sink, the newest turns, and the retrieved ones."""
        layout, tokens = self.layout, self.context.tokens
        always = {
            *range(layout.sink_blocks(tokens)),
            *range(layout.near_start(tokens), -(-tokens // layout.block_size)),
        }
        return always.union(*(blocks.tolist() for blocks in self.blocks_of_layers))

    @property
    def attended_tokens(self) -> list[int]:
        """How many of the document's tokens each layer attends to now."""
        return [layer.local_tokens + layer.far_tokens for layer in self.layers]

    @property
    def coverage(self) -> float | None:
        """How much of the question its best block says, as `lexical.coverage`."""
        assert self.context.resident.lexical is not None
        return coverage(self.context.resident.lexical, self.question.text)

    @property
    def sources(self) -> list[Source]:
        """The best-ranked passages of those that were attended."""
        return self.context.sources(self.ranking, self.attended)
