"""A task and a document made by hand, and what a policy selects for it."""

import zlib
from pathlib import Path

import tiny
import torch
from torch import Tensor

from actqkv_cli.retrieval.policy import Resident, RetrievalPolicy, Selection, Task
from actqkv_cli.store.manifest import Draft, Geometry, RetrievalHead, SourceFile
from actqkv_cli.store.reader import DocumentReader
from actqkv_cli.store.writer import DocumentWriter

LAYERS, HEADS, KV_HEADS, DIM = 4, 4, 2, 16
TOKENS, BLOCK, SINK = 397, 8, 8
BLOCKS = -(-TOKENS // BLOCK)  # the last one holds 5 tokens
OWN = slice(3, 12)
RETRIEVAL_HEADS = (
    RetrievalHead(layer=1, head=2, score=1),
    RetrievalHead(layer=2, head=0, score=0.5),
    RetrievalHead(layer=1, head=1, score=0.5),
)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_tensors() -> dict[str, Tensor]:
    """Random, but of the shapes of `store.tensors`, and places and bounds that could be."""
    states = (LAYERS, BLOCKS, 2, KV_HEADS, DIM)
    last = torch.tensor([min((block + 1) * BLOCK, TOKENS) - 1 for block in range(BLOCKS)])
    return {
        "representatives": normal(0, LAYERS, BLOCKS, 1, KV_HEADS, DIM),
        "head_keys": normal(1, 3, TOKENS, DIM),  # (1, 0), (1, 1), (2, 0)
        "l1": normal(10, *states),
        "bounds": normal(11, *states).sort(dim=2).values,
        "anchors": normal(12, LAYERS, BLOCKS, 1, KV_HEADS, DIM),
        "h2o": normal(13, LAYERS, BLOCKS).abs(),
        "snapkv": normal(14, LAYERS, BLOCKS).abs(),
        "l1_attended": normal(15, *states),
        "l1_attended_tokens": (last - normal(16, BLOCKS).mul(9).abs().long() % 5).int(),
        "l1_attended_mass": normal(17, BLOCKS).abs(),
    }


def lexical(text: str) -> Tensor:
    """A score for every block, as many as the text asks for."""
    return normal(zlib.crc32(text.encode()), BLOCKS).clamp(min=0)


def make_task(
    blocks: int = 10, own: slice = OWN, candidates: range = range(1, 46), text: str = "Who?", **tensors: Tensor
) -> Task:
    """tensors: in place of the random ones."""
    resident = Resident(
        layers=LAYERS,
        num_blocks=BLOCKS,
        kv_heads=KV_HEADS,
        query_heads=HEADS,
        device=torch.device("cpu"),
        load=lambda names: {**make_tensors(), **tensors},
        heads=RETRIEVAL_HEADS,
        lexical=lexical,
    )
    return Task(resident, candidates, blocks, BLOCK, TOKENS, torch.arange(SINK), own, text)


def question(seed: int, layer: int, window: int = 15) -> Tensor:
    """The queries `(H, W, d)` of a question in one layer."""
    return 3 * normal(seed + layer, HEADS, window, DIM)


def run(policy: RetrievalPolicy, seed: int, steps: int = 4) -> list[list[Selection]]:
    """What a question of 15 tokens and the steps after it select, layer by layer, as a session would ask.

    The question's queries are the same in both of its passes.
    """
    passes = [("question", 15), *[("decode", 1)] * steps]
    if policy.scout_layers:
        passes.insert(0, ("scout", 15))
    chosen = []
    for number, (step, window) in enumerate(passes):
        policy.begin(step)  # type: ignore[arg-type]
        layers = policy.scout_layers if step == "scout" else LAYERS
        at = seed + 100 * number if step == "decode" else seed
        selected = [policy.select(layer, question(at, layer, window)) for layer in range(layers)]
        chosen.append([of if isinstance(of, Selection) else whole_blocks(of) for of in selected])
    return chosen


def whole_blocks(ids: Tensor) -> Selection:
    return Selection(ids, ids[:0], torch.zeros(2, KV_HEADS, 0, DIM))


def top(scores: Tensor, candidates: range, count: int) -> list[int]:
    """The `count` best of the candidates by scores `(N,)`, ascending, found in the plainest way."""
    return sorted(sorted(candidates, key=lambda block: -float(scores[block]))[:count])


STORY = (
    "The lighthouse keeper fed a heron. It rained for days. A heron stood on the roof, and the keeper sang. "
    "Nobody heard him; the sea was loud, so loud that the lantern shook. In spring a schooner brought oil."
)
TEMPLATE = 6  # tokens before the text


def story(folder: Path, text: str, token: int = 3) -> DocumentReader:
    """A document whose tokens are `token` characters long, in blocks of 8 tokens; the model is no matter here."""
    starts = torch.tensor([0] * TEMPLATE + list(range(0, len(text), token)), dtype=torch.int32)
    geometry = Geometry(layers=1, kv_heads=1, head_dim=2, block_size=8, segment_tokens=512, dtype="float32")
    plan = Draft(
        id=folder.name,
        source=SourceFile(name="story", sha256="0" * 64, page_count=1, characters=len(text), extractor="none"),
        model={},
        geometry=geometry,
        reading=tiny.reading(),
        tokens=len(starts),
        document_start=TEMPLATE,
    )
    with DocumentWriter.open(folder, plan) as writer:
        representatives = torch.zeros(1, plan.block_count, 1, 1, 2)
        writer.write_segment(torch.zeros(1, plan.block_count, 2, 1, 8, 2), representatives)
        tables = {"ids": starts, "char_start": starts, "page": torch.ones_like(starts)}
        writer.commit(text, {**tables, "representatives": representatives})
    return DocumentReader(folder)
