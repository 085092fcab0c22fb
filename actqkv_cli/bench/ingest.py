"""How fast a document is read, beside the same model's stock forward over the same windows without any history."""

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actqkv_cli.bench.machine import synchronize
from actqkv_cli.engine.calibration import READING
from actqkv_cli.engine.ingest import geometry_of
from actqkv_cli.engine.prefill import prefill
from actqkv_cli.model.load import LoadedModel
from actqkv_cli.model.stock import stock_model
from actqkv_cli.store.library import scratch
from actqkv_cli.store.manifest import ReadingSettings, synthetic_draft
from actqkv_cli.store.writer import DocumentWriter


def measure(
    loaded: LoadedModel, ids: Tensor, budget: int, window: int, rounds: int, home: Path, full: bool = False
) -> dict[str, Any]:
    """Tokens per second of both, in turn, `rounds` times; the ratio's median, least and most; peak memory in bytes.

    home: on whose disk our segments are written; full: the stock model's over all tokens at once as well, with all of
    their attention.
    """
    reading = READING.model_copy(update={"budget": budget, "window": window})
    stock_decoder = stock_model(loaded.model).model
    _time_stock(stock_decoder, ids[: reading.window * 2], reading.window)  # warm up
    pairs, whole = [], []
    for _ in range(rounds):
        stock = len(ids) / _time_stock(stock_decoder, ids, reading.window)
        ours = len(ids) / _time_prefill(loaded, ids, reading, home)
        pairs.append((ours, stock))
        if full:
            whole.append(round(len(ids) / _time_stock(stock_decoder, ids, len(ids)), 1))
    ratios = sorted(ours / stock for ours, stock in pairs)
    return {
        "tokens": len(ids),
        "window": reading.window,
        "budget": budget,
        "tokens_per_second": [round(ours, 1) for ours, _ in pairs],
        "stock_tokens_per_second": [round(stock, 1) for _, stock in pairs],
        **({"stock_full_tokens_per_second": whole} if full else {}),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(ratios[0], 3), round(ratios[-1], 3)],
        "peak_host_bytes": None if full else _peak_bytes(),  # not ours alone
        "threads": torch.get_num_threads(),
        "device": str(loaded.device),
        "dtype": loaded.dtype,
        "torch": torch.__version__,
    }


def _time_stock(decoder: Any, ids: Tensor, window: int) -> float:
    """Seconds of the unmodified decoder over windows of so many tokens, each on its own, no logits."""
    ids = ids.to(decoder.device, torch.int64)
    began = time.perf_counter()
    with torch.inference_mode():
        for start in range(0, len(ids), window):
            decoder(input_ids=ids[None, start : start + window], use_cache=True)
    synchronize(decoder.device)
    return time.perf_counter() - began


def _time_prefill(loaded: LoadedModel, ids: Tensor, reading: ReadingSettings, home: Path) -> float:
    """Seconds of the prefill that `ingest` does, segments on disk included."""
    geometry = geometry_of(loaded.model.config.shape, loaded.dtype)
    draft = synthetic_draft("bench", geometry, reading, len(ids))
    with scratch(home) as parent:
        began = time.perf_counter()
        with DocumentWriter.open(parent / draft.id, draft) as writer:
            prefill(loaded.model, ids, writer, geometry, reading)
        synchronize(loaded.device)
        return time.perf_counter() - began


def _peak_bytes() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
