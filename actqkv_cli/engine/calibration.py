"""Finding a model's retrieval heads: a small document with planted facts, asked one by one.

Source: Wu et al., arXiv 2404.15574; the measure is ours: the mean reciprocal rank of the planted block.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from actqkv_cli.engine.planted import FACTS, planted_document
from actqkv_cli.engine.prefill import prefill
from actqkv_cli.engine.session import Session, open_session
from actqkv_cli.model.causal_lm import CausalLM
from actqkv_cli.model.heads import Calibration
from actqkv_cli.model.prompt import encode_document, encode_question
from actqkv_cli.model.tokenizer import Tokenizer
from actqkv_cli.retrieval.policies.heads import question_mass
from actqkv_cli.retrieval.policy import Pass, QueryDriven, Task
from actqkv_cli.store.library import scratch
from actqkv_cli.store.manifest import TOKENS, Geometry, ReadingSettings, RetrievalHead, synthetic_draft
from actqkv_cli.store.reader import DocumentReader
from actqkv_cli.store.tensors import names_in
from actqkv_cli.store.writer import DocumentWriter

HEADS = 6  # kept; of 12 that were found, 6 ranked as well as all
READING = ReadingSettings(
    window=512,
    sink=64,
    local=512,
    budget=2048,
    positions="clamped",  # inside the range of any model
    prefill="windowed",
    representative="mean",
    score="dot",
)


class _Observer(QueryDriven):
    """Notes for every head of every layer which blocks the question looks at, while it attends as the scout pass of
    `policies.heads` does, to the sink alone: with blocks in sight other heads are the best, of higher layers, which
    find nothing without."""

    needs = ()
    scout_layers = 0
    selects_once = True

    def __init__(self, task: Task, keys: list[Tensor]) -> None:
        """keys: of each layer, `(Hkv, T, d)`."""
        self._task, self._keys = task, keys
        self.mass: list[Tensor] = []

    def begin(self, step: Pass) -> None:
        pass

    def select(self, layer: int, queries: Tensor) -> Tensor:
        keys = self._keys[layer].repeat_interleave(queries.shape[0] // len(self._keys[layer]), dim=0)
        self.mass.append(question_mass(queries[:, self._task.own], keys, self._task).cpu())
        return torch.empty(0, dtype=torch.int64)

    def ranking(self, mass: Tensor) -> Tensor:
        return mass


def calibrate(
    model: CausalLM,
    tokenizer: Tokenizer,
    geometry: Geometry,
    cache: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Calibration:
    """Read the planted document into a scratch folder of `cache`, ask for each fact, keep the heads that rank its
    block best. Raises what the store raises."""
    text, places = planted_document()
    encoded = encode_document(tokenizer, [(1, 0, text)])
    tokens = len(encoded.ids)
    draft = synthetic_draft("calibration", geometry, READING, tokens, len(text), document_start=encoded.start)
    total = tokens + len(FACTS) * 64
    with scratch(cache) as parent:
        folder = parent / draft.id
        with DocumentWriter.open(folder, draft) as writer:
            prefilled = prefill(
                model, encoded.ids, writer, geometry, READING, lambda position: progress(position, total)
            )
            tables = {name: getattr(encoded, name) for name in names_in(TOKENS)}
            writer.commit(text, {**tables, "representatives": prefilled.representatives.cpu()})
        with DocumentReader(folder) as reader, open_session(model, reader) as session:
            keys = [_keys(reader, layer, tokens).to(model.device) for layer in range(geometry.layers)]
            ranks = []
            for number, ((_, question), place) in enumerate(zip(FACTS, places, strict=True)):
                mass = _observe(session, tokenizer, question, keys)
                target = _blocks_at(encoded.char_start, encoded.start, place, geometry.block_size)
                worse = mass < mass[..., target].amax(dim=-1, keepdim=True)
                worse[..., target] = True
                ranks.append(1 + (~worse).sum(dim=-1))  # (L, H)
                progress(tokens + (number + 1) * 64, total)
    # Many heads have every fact among their few best blocks, and those that look there hardest are not those that find
    # most in a text with more to look at. What tells is which block comes first.
    score = torch.stack(ranks).float().reciprocal().mean(dim=0)
    order = score.flatten().argsort(descending=True, stable=True)
    heads_per_layer = score.shape[1]
    heads = [divmod(int(i), heads_per_layer) for i in order[:HEADS]]
    return Calibration(
        heads=[
            RetrievalHead(layer=layer, head=head, score=round(float(score[layer, head]), 4)) for layer, head in heads
        ],
    )


def _observe(session: Session, tokenizer: Tokenizer, question: str, keys: list[Tensor]) -> Tensor:
    """Attention of all heads from one question to all blocks, `(L, H, N)`."""
    encoded = encode_question(tokenizer, question)
    task = session.task(encoded)
    observer = _Observer(task, keys)
    session.run([(observer, encoded)], max_tokens=0)[0].close()
    return torch.stack(observer.mass)


def _keys(reader: DocumentReader, layer: int, tokens: int) -> Tensor:
    blocks = reader.read_blocks(layer, torch.arange(reader.manifest.block_count))
    return blocks[:, 0].transpose(0, 1).flatten(1, 2)[:, :tokens]


def _blocks_at(char_start: Tensor, first: int, place: tuple[int, int], block_size: int) -> Tensor:
    """The blocks in which a range of characters stands."""
    inside = torch.arange(first, len(char_start))
    starts = char_start[first:]
    inside = inside[(starts >= place[0]) & (starts < place[1])]
    return (inside // block_size).unique()
