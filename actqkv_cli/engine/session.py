"""A question put to a stored document: the scout pass, the answer pass, and the decoding that follows."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from actqkv_cli.engine.context import Context, Source, context_of
from actqkv_cli.engine.document import OpenDocument
from actqkv_cli.engine.layer import Positions
from actqkv_cli.engine.layers import Layer, make_layers, paged
from actqkv_cli.engine.layout import Layout
from actqkv_cli.engine.recorded import RecordedStep, recordable
from actqkv_cli.model.attention import Rotary, actqkv_attention, attention_cache, feed, first_layers
from actqkv_cli.model.prompt import EncodedQuestion
from actqkv_cli.retrieval.lexical import coverage
from actqkv_cli.retrieval.policies import make_policy
from actqkv_cli.retrieval.policies.heads import block_sums
from actqkv_cli.retrieval.policy import RetrievalPolicy, Task
from actqkv_cli.store.reader import DocumentReader
from actqkv_kernels import Workspace


@contextmanager
def open_session(model: PreTrainedModel, reader: DocumentReader, budget: int | None = None) -> Iterator["Session"]:
    """A session over one document, as `session_over`."""
    with session_over(model, context_of([OpenDocument(reader, model.device)], model), budget) as session:
        yield session


@contextmanager
def session_over(model: PreTrainedModel, context: Context, budget: int | None = None) -> Iterator["Session"]:
    """Put our attention on the model.

    budget: tokens per layer beside the question, unless a question has its own; None: as the document was read with.

    A question sees sink, retrieved blocks and the newest turns of a conversation. The end of a document is no context
    of a question, as it is of the text that follows it: a small model would answer from it.
    """
    with actqkv_attention(model) as rotary:
        yield Session(model, rotary, context, budget)


class Session:
    """A model and what it is asked about, ready for any number of questions. Made by `session_over`."""

    def __init__(self, model: PreTrainedModel, rotary: Rotary, context: Context, budget: int | None) -> None:
        manifest = context.documents[0].reader.manifest
        geometry, reading = manifest.geometry, manifest.reading
        self.model = model
        self.context = context
        self.tokens = context.tokens
        size, budget = geometry.block_size, budget or reading.budget
        local = min(reading.local, context.said * size, (budget - reading.sink) // size * size)
        self.layout = Layout(size, reading.sink, local, budget)
        # Keys that stand in a row before the question are read better than keys at one distance, which reading needs.
        self._positions: Positions = "original" if reading.positions == "original" else "compact"
        self.resident = context.resident
        self._reading = reading
        self._workspace = Workspace()
        self._rotary = rotary

    def task(self, question: EncodedQuestion, budget: int | None = None) -> Task:
        layout = replace(self.layout, budget=budget or self.layout.budget)
        return Task(
            resident=self.resident,
            candidates=layout.candidates(self.tokens),
            blocks=layout.retrieved_blocks,
            block_size=self.layout.block_size,
            tokens=self.tokens,
            unranked=self.context.unranked,
            own=question.own,
            text=question.text,
            before=question.before,
            score=self._reading.score,
        )

    def start(self, question: EncodedQuestion, policy: str, room: int, budget: int | None = None) -> "Run":
        """Feed a question and be ready to decode up to `room` tokens. Questions do not see one another."""
        return self.start_all([(question, policy, budget)], room)[0]

    def start_all(self, asked: Sequence[tuple[EncodedQuestion, str, int | None]], room: int) -> "list[Run]":
        """(question, policy, budget) for each run; they go through the model together, and read blocks once."""
        tasks = [(policy, self.task(question, budget), question) for question, policy, budget in asked]
        return self.run([(make_policy(policy, task), question) for policy, task, question in tasks], room)

    def run(self, asked: Sequence[tuple[RetrievalPolicy, EncodedQuestion]], room: int) -> "list[Run]":
        """Feed questions, each under its policy, which go through the model together: a run for each."""
        self._reserve(len(asked))
        runs = [Run(self, policy, question, room) for policy, question in asked]
        for depth in sorted({run.policy.scout_layers for run in runs} - {0}):
            began = time.perf_counter()
            scouts = [run for run in runs if run.policy.scout_layers == depth]
            # Nothing looks at what follows a question's own tokens.
            rows, lengths = self._rows([run.question.ids[: run.question.own.stop or None] for run in scouts])
            cache = attention_cache(*(run.begin("scout") for run in scouts), lengths=lengths)
            with first_layers(self.model, depth), torch.inference_mode():
                feed(self.model.model, rows, cache)
            for run in scouts:
                run.scout_seconds = time.perf_counter() - began
        for run in runs:
            run.begin("question")
        self._read_ahead(runs)
        rows, lengths = self._rows([run.question.ids for run in runs])
        for run, logits in zip(runs, self.forward(runs, rows, lengths=lengths), strict=True):
            run.settle(logits[-1])
        return runs

    def _reserve(self, questions: int) -> None:
        """Room in memory for the blocks of all the questions, and of one that was asked before."""
        layout = self.layout
        always = (layout.sink + layout.local) // layout.block_size
        # Of a block's sentences parts may stand in both of its neighbours.
        wanted = 3 * layout.retrieved_blocks * max(2, questions) + always
        for document in self.context.documents:
            document.pool.reserve(min(wanted, document.reader.manifest.block_count))
        if paged(self._rotary):
            self.context.pool.reserve(min(wanted, self.resident.blocks))

    def _read_ahead(self, runs: "Sequence[Run]") -> None:
        """Have the blocks that are selected already read while the layers before theirs compute."""
        sink = torch.arange(self.layout.sink_blocks(self.tokens))
        for layer in range(self.resident.layers):
            foreseen = [run.policy.foreseen(layer) for run in runs]
            self.context.read_ahead(layer, torch.cat([sink, *foreseen]).unique())

    def _rows(self, ids: Sequence[Tensor]) -> tuple[Tensor, list[int] | None]:
        """Tokens `(R, W)`, padded on the left, for it is the end of a row that is looked up; and how many of each row
        are no padding, if there is any."""
        lengths = [len(row) for row in ids]
        rows = torch.stack([pad(row, (max(lengths) - len(row), 0)) for row in ids])
        return rows.to(self.model.device), lengths if len(set(lengths)) > 1 else None

    def forward(
        self, runs: "Sequence[Run]", ids: Tensor, keep: int = 1, lengths: Sequence[int] | None = None
    ) -> Tensor:
        """Feed tokens `(R, W)` to the runs, a row each: logits `(R, keep, V)` fp32 of the last of them (0: of all).

        lengths: how many tokens of each row, from its end, are no padding.
        """
        cache = attention_cache(*(run.layers for run in runs), lengths=lengths)
        with torch.inference_mode():
            out = feed(self.model, ids, cache, logits_to_keep=keep)
        return out.logits.float()

    def step(self, runs: "Sequence[Run]", tokens: Sequence[int]) -> None:
        """Feed every run its next token; each then has the logits of the one after it."""
        for run in runs:
            run.policy.begin("decode")
        if len(runs) == 1 and (logits := runs[0].play(tokens[0])) is not None:
            runs[0].logits = logits
            return
        ids = torch.tensor(tokens, device=self.model.device)[:, None]
        for run, logits in zip(runs, self.forward(runs, ids), strict=True):
            run.logits = logits[-1]

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
                    for run, found in zip(ours, self.forward(ours, ids.expand(len(ours), -1), keep=0), strict=True):
                        logits[run].append(found)
        return [torch.cat(logits[run]) for run in runs]

    def layers(self, policy: RetrievalPolicy) -> list[Layer]:
        return make_layers(
            self.context.pool,
            self.resident.layers,
            policy.select,
            self._rotary,
            self.layout,
            self._positions,
            self.context.gaps,
            self._workspace,
        )


class Run:
    """One question in progress, made by `Session.run`. `logits` `(V,)` fp32 are those of the next token."""

    def __init__(self, session: Session, policy: RetrievalPolicy, question: EncodedQuestion, room: int) -> None:
        self.policy = policy
        self.question = question
        self.layers = session.layers(policy)
        self.scout_seconds = 0.0
        self._session = session
        self._room = room + len(question.ids)
        self._recorded: RecordedStep | None = None
        self.logits = self.ranking = torch.empty(0)

    def begin(self, step: Literal["scout", "question"]) -> list[Layer]:
        """Make ready for a pass over the question; returns the layers that it goes through."""
        layers = self.layers[: self.policy.scout_layers] if step == "scout" else self.layers
        for layer in layers:
            layer.begin(self._session.tokens, self._room)
            layer.want_mass = step == "question"
        self.policy.begin(step)
        return layers

    def settle(self, logits: Tensor) -> None:
        """The question has gone through all layers: keep the next token's logits `(V,)` and rank the blocks."""
        session = self._session
        self.logits = logits
        mass = torch.stack([layer.document_mass(session.tokens) for layer in self.layers]).mean(dim=0)
        mass /= session.resident.query_heads * len(self.question.ids)
        mass[session.context.unranked.to(mass.device)] = 0
        self.ranking = self.policy.ranking(block_sums(mass, session.layout.block_size).cpu())
        for layer in self.layers:
            layer.want_mass = False

    @property
    def blocks_of_layers(self) -> list[Tensor]:
        """Ids of the retrieved blocks that each layer attends to now."""
        return [layer.chosen_blocks for layer in self.layers]

    @property
    def attended(self) -> set[int]:
        """The blocks that some layer attends to: sink, the newest turns, and the retrieved ones."""
        layout, tokens = self._session.layout, self._session.tokens
        always = {
            *range(layout.sink_blocks(tokens)),
            *range(layout.near_start(tokens), -(-tokens // layout.block_size)),
        }
        return always.union(*(blocks.tolist() for blocks in self.blocks_of_layers))

    @property
    def coverage(self) -> float | None:
        """How much of the question its best block says, as `lexical.coverage`."""
        assert self._session.resident.lexical is not None
        return coverage(self._session.resident.lexical, self.question.text)

    @property
    def sources(self) -> list[Source]:
        """The best-ranked passages of those that were attended."""
        return self._session.context.sources(self.ranking, self.attended)

    def step(self, token: int) -> Tensor:
        """Feed one token; returns (and keeps) the next token's logits `(V,)` fp32."""
        self._session.step([self], [token])
        return self.logits

    def play(self, token: int) -> Tensor | None:
        """Feed a token by a recorded step: the next one's logits `(V,)`, or None where that cannot be."""
        with torch.inference_mode():
            if self._recorded is None or not self._recorded.fits():
                self._recorded = None  # what it reads goes before another is made
                if not recordable(self):
                    return None
                self._recorded = RecordedStep(self._session, self)
            logits = self._recorded.step(token)
        if logits is None:
            self._recorded = None
        return logits

    @property
    def attended_tokens(self) -> list[int]:
        """How many of the document's tokens each layer attends to now."""
        return [layer.document_near + layer.far_tokens for layer in self.layers]
