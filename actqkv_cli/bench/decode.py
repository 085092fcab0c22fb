"""What a decoding step takes, whatever the document's length: a model of random weights over a document of random
blocks, which costs no reading and no disk. What is timed depends on shapes alone.
"""

import statistics
import time
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actqkv_cli.bench.machine import describe, measure_compute, synchronize
from actqkv_cli.engine.calibration import HEADS, READING
from actqkv_cli.engine.context import context_of
from actqkv_cli.engine.document import OpenDocument
from actqkv_cli.engine.ingest import geometry_of
from actqkv_cli.engine.run import Run
from actqkv_cli.engine.session import session_over
from actqkv_cli.model.causal_lm import CausalLM
from actqkv_cli.model.config import ModelConfig
from actqkv_cli.model.load import DTYPES
from actqkv_cli.model.prompt import EncodedQuestion
from actqkv_cli.model.shape import Shape
from actqkv_cli.retrieval.policies import usual_budget
from actqkv_cli.retrieval.policy import head_rows
from actqkv_cli.store.manifest import Draft, RetrievalHead, synthetic_draft
from actqkv_cli.store.tensors import STORED

_QUESTION_TOKENS = 24
_WARMUP_TOKENS = 4  # not timed: what is recorded and brought in for the first ones stays
_DISTINCT_BLOCKS = 64  # that are really there; the document repeats them


class _RandomReader:
    """As much of a `DocumentReader` as asking needs, with random numbers for what a model would have computed."""

    folder = Path("random")

    def __init__(self, manifest: Draft, query_heads: int, device: torch.device) -> None:
        self.manifest = manifest
        self._device, geometry = device, manifest.geometry
        self._rows = len(head_rows(manifest.retrieval_heads, query_heads, geometry.kv_heads))
        self._shape = (2, geometry.kv_heads, geometry.block_size, geometry.head_dim)
        self._dtype = DTYPES[geometry.dtype]
        self._blocks = torch.randn((_DISTINCT_BLOCKS, *self._shape)).to(self._dtype)

    def tensors(self, names: Collection[str]) -> dict[str, Tensor]:
        """Those that a document has without baselines."""
        found = {}
        for name in names:
            if STORED[name].kept != "with baselines":
                _, shape = STORED[name].like(self.manifest.geometry, self.manifest.tokens, self._rows)
                found[name] = torch.randn(shape, dtype=self._dtype, device=self._device)
        return found

    def read_blocks(self, layer: int, ids: Tensor, pinned: bool = False) -> Tensor:
        blocks = torch.empty((len(ids), *self._shape), dtype=self._dtype, pin_memory=pinned)
        blocks[:] = self._blocks[ids % _DISTINCT_BLOCKS]
        return blocks


def measure(
    config: ModelConfig, lengths: list[int], policies: list[str], budget: int | None, rounds: int, tokens: int,
    device: torch.device, dtype: str,
) -> dict[str, Any]:  # fmt: skip
    """A record: a row for each length of a document, in tokens, and each policy; beside the time that reading the
    weights takes at the rate at which this machine copies memory."""
    shape = config.shape
    model = _random_model(config, device, DTYPES[dtype])
    compute = measure_compute(shape, DTYPES[dtype], device)
    # Of the embedding a step reads one row; an output head that is tied to it is read whole.
    read = (shape.layers * shape.layer_parameters + shape.vocabulary * shape.hidden) * DTYPES[dtype].itemsize
    weights = read / compute.memory
    rows = []
    for length in lengths:
        document = _random_document(shape, length, dtype, device)
        for policy in policies:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            seconds = _time_rounds(model, document, policy, budget, rounds, tokens)
            rows.append(
                {
                    "document_tokens": length,
                    "policy": policy,
                    "seconds_per_token": statistics.median(seconds),
                    "range": [min(seconds), max(seconds)],
                    "times_weights": statistics.median(seconds) / weights,
                    "peak_device_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
                }
            )
        del document
    return {
        "rows": rows,
        "weights": {"bytes": read, "seconds": weights},
        "rounds": rounds,
        "tokens": tokens,
        "compute": asdict(compute),
        "shape": asdict(shape),
        "machine": describe(device, dtype),
    }


def _random_model(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> CausalLM:
    with device:
        model = CausalLM(config, dtype).requires_grad_(False)
    model.draw_weights()
    return model


def _random_document(shape: Shape, tokens: int, dtype: str, device: torch.device) -> OpenDocument:
    heads = [
        RetrievalHead(layer=shape.layers // 4 + number % 3, head=number % shape.heads, score=1)
        for number in range(HEADS)
    ]
    geometry = geometry_of(shape, dtype)
    draft = synthetic_draft("random", geometry, READING, tokens, retrieval_heads=heads)
    document = OpenDocument(_RandomReader(draft, shape.heads, device), device)  # type: ignore[arg-type]
    # There is no text: scores in the place of BM25's, and no sentence goes on beyond its block.
    document.lexical = lambda question: torch.rand(draft.block_count)
    document.sentences = lambda block: range(block * geometry.block_size, (block + 1) * geometry.block_size)
    return document


def _time_rounds(
    model: CausalLM, document: OpenDocument, policy: str, budget: int | None, rounds: int, tokens: int
) -> list[float]:
    """Seconds per token, of each round."""
    budget = budget or usual_budget(policy, READING, document.reader.manifest.geometry.block_size)
    ids = torch.randint(1000, (_QUESTION_TOKENS,))
    question = EncodedQuestion(ids, slice(2, _QUESTION_TOKENS - 4), "random")
    found = []
    with session_over(model, context_of([document], model), budget) as session:
        for _ in range(rounds):
            run = session.start(question, policy, max_tokens=_WARMUP_TOKENS + tokens + 1)
            for _ in range(_WARMUP_TOKENS):
                run.step(int(run.logits.argmax()))
            found.append(time_steps(run, tokens))
            run.close()
    return found


def time_steps(run: Run, tokens: int) -> float:
    """Seconds per token of the next `tokens` that a run decodes greedily."""
    device = run.logits.device
    synchronize(device)
    began = time.perf_counter()
    for _ in range(tokens):
        run.step(int(run.logits.argmax()))
    synchronize(device)
    return (time.perf_counter() - began) / tokens
