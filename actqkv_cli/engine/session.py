"""A question put to a stored document: the scout pass, the answer pass, and the decoding that follows."""

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from actqkv_cli.engine.blocks import BlockCache
from actqkv_cli.engine.layer import LayerAttention
from actqkv_cli.engine.layout import Layout
from actqkv_cli.errors import StoreDamaged
from actqkv_cli.model.attention import Rotary, actqkv_attention, attention_cache, first_layers
from actqkv_cli.model.prompt import EncodedQuestion
from actqkv_cli.retrieval.lexical import lexical_index
from actqkv_cli.retrieval.policies import make_policy
from actqkv_cli.retrieval.policies.heads import block_sums
from actqkv_cli.retrieval.policy import Resident, RetrievalPolicy, Task
from actqkv_cli.store.reader import DocumentReader
from actqkv_kernels import Workspace


@contextmanager
def open_session(model: PreTrainedModel, reader: DocumentReader, budget: int | None = None) -> Iterator["Session"]:
    """Put our attention on the model and a document's resident part into memory.

    budget: tokens per layer beside the question, unless a question has its own; None: as the document was read with.
    """
    with actqkv_attention(model) as rotary:
        yield Session(model, rotary, reader, budget)


def load_resident(reader: DocumentReader, model: PreTrainedModel) -> Resident:
    """What of a document stays in memory, on the model's device. Raises StoreDamaged if it does not fit the model."""
    manifest, index = reader.manifest, {name: tensor.to(model.device) for name, tensor in reader.index().items()}

    @functools.cache
    def methods() -> Mapping[str, Tensor]:
        return {name: tensor.to(model.device) for name, tensor in reader.methods().items()}

    index_text = functools.cache(lexical_index)
    resident = Resident(
        representatives=index["representatives"],
        query_heads=model.config.num_attention_heads,
        heads=tuple(manifest.retrieval_heads),
        head_keys=index.get("head_keys"),
        density=tuple(manifest.density),
        methods=methods,
        lexical=lambda question: index_text(reader)(question),
    )
    if resident.heads:
        expected = (len(resident.head_rows), manifest.tokens, manifest.geometry.head_dim)
        found = None if resident.head_keys is None else tuple(resident.head_keys.shape)
        if found != expected or any(head.head >= resident.query_heads for head in resident.heads):
            raise StoreDamaged(f"{reader.folder}: the keys of the retrieval heads do not fit them or the model")
    return resident


class Session:
    """A model and an open document, ready for any number of questions. Made by `open_session`."""

    def __init__(self, model: PreTrainedModel, rotary: Rotary, reader: DocumentReader, budget: int | None) -> None:
        manifest = reader.manifest
        geometry, reading = manifest.geometry, manifest.reading
        self.model = model
        self.tokens = manifest.tokens
        self.layout = Layout(geometry.block_size, reading.sink, reading.local, budget or reading.budget)
        self.resident = load_resident(reader, model)
        self._reading = reading
        self._workspace = Workspace()
        self._rotary = rotary
        per_layer = self.layout.retrieved_blocks * 2 + (reading.sink + reading.local) // geometry.block_size
        self.source = BlockCache(reader.read_blocks, geometry.layers, per_layer, model.device)

    def task(self, question: EncodedQuestion, budget: int | None = None) -> Task:
        layout = replace(self.layout, budget=budget or self.layout.budget)
        return Task(
            resident=self.resident,
            candidates=layout.candidates(self.tokens),
            blocks=layout.retrieved_blocks,
            block_size=self.layout.block_size,
            tokens=self.tokens,
            ranked_from=min(self._reading.sink, self.tokens - 1),
            own=question.own,
            text=question.text,
            score=self._reading.score,
        )

    def start(self, question: EncodedQuestion, policy: str, room: int, budget: int | None = None) -> "Run":
        """Feed a question and be ready to decode up to `room` tokens. Questions do not see one another."""
        return self.run([make_policy(policy, self.task(question, budget))], question, room)[0]

    def start_all(self, question: EncodedQuestion, settings: Sequence[tuple[str, int]], room: int) -> "list[Run]":
        """One question under several policies and budgets (0: the session's), which go through the model together."""
        tasks = [(policy, self.task(question, budget or None)) for policy, budget in settings]
        return self.run([make_policy(policy, task) for policy, task in tasks], question, room)

    def run(self, policies: Sequence[RetrievalPolicy], question: EncodedQuestion, room: int) -> "list[Run]":
        """A run for each policy, the question fed."""
        runs = [Run(self, policy, question, room) for policy in policies]
        ids = question.ids.to(self.model.device)
        with torch.inference_mode():
            for depth in sorted({run.policy.scout_layers for run in runs} - {0}):
                began = time.perf_counter()
                scouts = [run for run in runs if run.policy.scout_layers == depth]
                cache = attention_cache(*(run.begin("scout") for run in scouts))
                with first_layers(self.model, depth):
                    rows = ids.expand(len(scouts), -1)
                    self.model.model(input_ids=rows, past_key_values=cache, use_cache=True)
                for run in scouts:
                    run.scout_seconds = time.perf_counter() - began
            for run in runs:
                run.begin("question")
            for run, logits in zip(runs, self.forward(runs, ids), strict=True):
                run.settle(logits[-1], question)
        return runs

    def forward(self, runs: "Sequence[Run]", ids: Tensor, keep: int = 1) -> Tensor:
        """Feed the same tokens `(W,)` to every run: logits `(R, keep, V)` fp32 of the last of them (0: of all)."""
        cache = attention_cache(*(run.layers for run in runs))
        rows = ids.expand(len(runs), -1)
        with torch.inference_mode():
            out = self.model(input_ids=rows, past_key_values=cache, use_cache=True, logits_to_keep=keep)
        return out.logits.float()

    def follow(self, runs: "Sequence[Run]", tokens: Tensor) -> list[Tensor]:
        """Logits `(A, V)` fp32 of every run after the question, and after each but the last of an answer's tokens
        `(A,)`."""
        logits = {run: [run.logits[None]] for run in runs}
        for settled in (True, False):
            ours = [run for run in runs if run.policy.settled == settled]
            left = tokens[:-1].to(self.model.device)
            # What was selected for the question stays: all tokens at once are as good as one by one.
            for ids in [left] if settled else left.split(1):
                if ours and len(ids):
                    for run in ours:
                        run.policy.begin("decode")
                    for run, found in zip(ours, self.forward(ours, ids, keep=0), strict=True):
                        logits[run].append(found)
        return [torch.cat(logits[run]) for run in runs]

    def layers(self, policy: RetrievalPolicy) -> list[LayerAttention]:
        positions, space = self._reading.positions, self._workspace
        return [
            LayerAttention(layer, self.source, policy.select, self._rotary, self.layout, positions, space)
            for layer in range(len(self.resident.representatives))
        ]


class Run:
    """One question in progress, made by `Session.run`. `logits` `(V,)` fp32 are those of the next token."""

    def __init__(self, session: Session, policy: RetrievalPolicy, question: EncodedQuestion, room: int) -> None:
        self.policy = policy
        self.layers = session.layers(policy)
        self.scout_seconds = 0.0
        self._session = session
        self._room = room + len(question.ids)
        self.logits = self.ranking = torch.empty(0)

    def begin(self, step: Literal["scout", "question"]) -> list[LayerAttention]:
        """Make ready for a pass over the question; returns the layers that it goes through."""
        layers = self.layers[: self.policy.scout_layers] if step == "scout" else self.layers
        for layer in layers:
            layer.begin(self._session.tokens, self._room)
            layer.want_mass = step == "question"
        self.policy.begin(step)
        return layers

    def settle(self, logits: Tensor, question: EncodedQuestion) -> None:
        """The question has gone through all layers: keep the next token's logits `(V,)` and rank the blocks."""
        session = self._session
        self.logits = logits
        mass = torch.stack([layer.document_mass(session.tokens) for layer in self.layers]).mean(dim=0)
        mass /= session.resident.query_heads * len(question.ids)
        mass[: session.task(question).ranked_from] = 0  # every head looks at the sink, whatever is asked
        self.ranking = self.policy.ranking(block_sums(mass, session.layout.block_size).cpu())
        for layer in self.layers:
            layer.want_mass = False

    @property
    def blocks_of_layers(self) -> list[Tensor]:
        """Ids of the retrieved blocks that each layer attends to now."""
        return [layer.chosen_blocks for layer in self.layers]

    @property
    def attended(self) -> set[int]:
        """The document's blocks that some layer attends to: sink, local window, and the retrieved ones."""
        layout, tokens = self._session.layout, self._session.tokens
        always = {
            *range(layout.sink_blocks(tokens)),
            *range(layout.near_start(tokens), -(-tokens // layout.block_size)),
        }
        return always.union(*(blocks.tolist() for blocks in self.blocks_of_layers))

    def step(self, token: int) -> Tensor:
        """Feed one token; returns (and keeps) the next token's logits `(V,)` fp32."""
        self.policy.begin("decode")
        self.logits = self._session.forward([self], torch.tensor([token], device=self.logits.device))[0, -1]
        return self.logits

    @property
    def attended_tokens(self) -> list[int]:
        """How many of the document's tokens each layer attends to now."""
        near = self._session.tokens - self.layers[0].near_first
        return [near + layer.far_tokens for layer in self.layers]
