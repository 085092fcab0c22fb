"""A question put to a stored document: the scout pass, the question pass, and the decoding that follows."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from actqkv_cli.engine.context import Context, context_of
from actqkv_cli.engine.document import OpenDocument
from actqkv_cli.engine.layer import Layer, Positions
from actqkv_cli.engine.layout import Layout
from actqkv_cli.engine.run import Run
from actqkv_cli.model.causal_lm import CausalLM
from actqkv_cli.model.prompt import EncodedQuestion
from actqkv_cli.model.rotary import Rotary
from actqkv_cli.retrieval.policies import make_policy
from actqkv_cli.retrieval.policy import RetrievalPolicy, Task
from actqkv_cli.store.reader import DocumentReader
from actqkv_kernels import Workspace


@contextmanager
def open_session(model: CausalLM, reader: DocumentReader, budget: int | None = None) -> Iterator["Session"]:
    """A session over one document, as `session_over`."""
    with session_over(model, context_of([OpenDocument(reader, model.device)], model), budget) as session:
        yield session


@contextmanager
def session_over(model: CausalLM, context: Context, budget: int | None = None) -> Iterator["Session"]:
    """A session that lets go of what its runs hold.

    budget: tokens per layer beside the question, unless a question has its own; None: as the document was read with.

    A question sees sink, retrieved blocks and the newest turns of a conversation. The end of a document is no context
    of a question, as it is of the text that follows it: a small model would answer from it.
    """
    session = Session(model, context, budget)
    try:
        yield session
    finally:
        for run in session.runs:
            run.close()


class Session:
    """A model and what it is asked about, ready for any number of questions. Made by `session_over`."""

    def __init__(self, model: CausalLM, context: Context, budget: int | None) -> None:
        manifest = context.documents[0].reader.manifest
        geometry, reading = manifest.geometry, manifest.reading
        self.model = model
        self.context = context
        self.tokens = context.tokens
        size, budget = geometry.block_size, budget or reading.budget
        local = min(reading.local, context.turn_blocks * size, (budget - reading.sink) // size * size)
        self.layout = Layout(size, reading.sink, local, budget)
        # Keys that stand in a row before the question are read better than keys at one distance, which reading needs.
        self._positions: Positions = "original" if reading.positions == "original" else "compact"
        self.resident = context.resident
        self._reading = reading
        self._workspace = Workspace()
        self._rotary = Rotary(model)
        self.runs: list[Run] = []  # that are open

    def task(self, question: EncodedQuestion, budget: int | None = None) -> Task:
        layout = replace(self.layout, budget=budget or self.layout.budget)
        return Task(
            resident=self.resident,
            candidates=layout.candidates(self.tokens),
            block_budget=layout.retrieved_blocks,
            block_size=self.layout.block_size,
            tokens=self.tokens,
            unranked=self.context.unranked,
            own=question.own,
            text=question.text,
            before=question.before,
            score=self._reading.score,
        )

    def start(self, question: EncodedQuestion, policy: str, max_tokens: int, budget: int | None = None) -> Run:
        """Feed a question and be ready to decode up to `max_tokens` tokens. Questions do not see one another."""
        return self.start_all([(question, policy, budget)], max_tokens)[0]

    def start_all(self, asked: Sequence[tuple[EncodedQuestion, str, int | None]], max_tokens: int) -> list[Run]:
        """(question, policy, budget) for each run; they go through the model together, and read blocks once."""
        tasks = [(policy, self.task(question, budget), question) for question, policy, budget in asked]
        return self.run([(make_policy(policy, task), question) for policy, task, question in tasks], max_tokens)

    def run(self, asked: Sequence[tuple[RetrievalPolicy, EncodedQuestion]], max_tokens: int) -> list[Run]:
        """Feed questions, each under its policy, which go through the model together: a run for each."""
        self._reserve(len(asked))
        runs = [self._run(policy, question, max_tokens) for policy, question in asked]
        self.runs = [run for run in self.runs if not run.closed] + runs
        began = time.perf_counter()
        for depth in sorted({run.policy.scout_layers for run in runs} - {0}):
            scouts = [run for run in runs if run.policy.scout_layers == depth]
            # Nothing looks at what follows a question's own tokens.
            rows, lengths = self._rows([run.question.ids[: run.question.own.stop or None] for run in scouts])
            with torch.inference_mode():
                self.model.hidden_states(rows, [run.begin("scout") for run in scouts], lengths, depth)
        for run in runs:
            run.begin("question")  # policies that have scouted choose now
            run.retrieve_seconds = time.perf_counter() - began
        self._prefetch(runs)
        rows, lengths = self._rows([run.question.ids for run in runs])
        for run, logits in zip(runs, self.forward(_layers(runs), rows, lengths=lengths), strict=True):
            run.finish_question(logits[-1])
        return runs

    def _run(self, policy: RetrievalPolicy, question: EncodedQuestion, max_tokens: int) -> Run:
        gaps = self.context.gaps if len(self.context.gaps) else None
        place = (self._rotary, self.layout, self._positions, self._workspace, gaps)
        layers = [Layer(layer, self.context.pool, policy.select, *place) for layer in range(self.resident.layers)]
        max_tokens += len(question.ids)
        return Run(self.context, self.layout, policy, question, layers, max_tokens, self.forward, self.step)

    def _reserve(self, questions: int) -> None:
        """Room in memory for the blocks of all the questions, and of one that was asked before."""
        layout = self.layout
        always = (layout.sink + layout.local) // layout.block_size
        # Of a block's sentences parts may stand in both of its neighbours.
        wanted = 3 * layout.retrieved_blocks * max(2, questions) + always
        for document in self.context.documents:  # what is read ahead of several comes by the way of their own pools
            document.pool.reserve(min(wanted, document.reader.manifest.block_count))
        self.context.pool.reserve(min(wanted, self.resident.num_blocks))

    def _prefetch(self, runs: Sequence[Run]) -> None:
        """Have the blocks that are selected already read while the layers before theirs compute."""
        sink = torch.arange(self.layout.sink_blocks(self.tokens))
        for layer in range(self.resident.layers):
            known = [run.policy.known_blocks(layer) for run in runs]
            self.context.prefetch(layer, torch.cat([sink, *known]).unique())

    def _rows(self, ids: Sequence[Tensor]) -> tuple[Tensor, list[int] | None]:
        """Tokens `(R, W)`, padded on the left, for it is the end of a row that is looked up; and how many of each row
        are no padding, if there is any."""
        lengths = [len(row) for row in ids]
        rows = torch.stack([pad(row, (max(lengths) - len(row), 0)) for row in ids])
        return rows.to(self.model.device), lengths if len(set(lengths)) > 1 else None

    def forward(
        self, rows: Sequence[Sequence[Layer]], ids: Tensor, keep: int = 1, lengths: Sequence[int] | None = None
    ) -> Tensor:
        """Feed tokens `(R, W)` to rows of layers: logits `(R, keep, V)` fp32 of the last of them (0: of all).

        lengths: how many tokens of each row, from its end, are no padding.
        """
        with torch.inference_mode():
            return self.model(ids, rows, lengths, keep).float()

    def step(self, runs: Sequence[Run], tokens: Sequence[int]) -> None:
        """Feed every run its next token; each then has the logits of the one after it."""
        for run in runs:
            run.policy.begin("decode")
        if len(runs) == 1 and (logits := runs[0].step_recorded(tokens[0])) is not None:
            runs[0].logits = logits
            return
        ids = torch.tensor(tokens, device=self.model.device)[:, None]
        for run, logits in zip(runs, self.forward(_layers(runs), ids), strict=True):
            run.logits = logits[-1]

    def teacher_force(self, runs: Sequence[Run], tokens: Tensor) -> list[Tensor]:
        """Logits `(A, V)` fp32 of every run after the question, and after each but the last of an answer's tokens
        `(A,)`."""
        logits = {run: [run.logits[None]] for run in runs}
        for once in (True, False):
            ours = [run for run in runs if run.policy.selects_once == once]
            left = tokens[:-1].to(self.model.device)
            # What was selected for the question stays: all tokens at once are as good as one by one.
            for ids in [left] if once else left.split(1):
                if ours and len(ids):
                    for run in ours:
                        run.policy.begin("decode")
                    fed = self.forward(_layers(ours), ids.expand(len(ours), -1), keep=0)
                    for run, found in zip(ours, fed, strict=True):
                        logits[run].append(found)
        return [torch.cat(logits[run]) for run in runs]


def _layers(runs: Sequence[Run]) -> list[list[Layer]]:
    return [run.layers for run in runs]
