"""actqkv plan: what reading a document would take here, and whether keeping its cache pays, before any work is done."""

import contextlib
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actqkv_cli.commands.ingest import reading_of
from actqkv_cli.config import Settings
from actqkv_cli.documents import Document, read_document
from actqkv_cli.engine.planted import FACTS
from actqkv_cli.errors import ActqkvError, UsageError
from actqkv_cli.loading import choose_default, is_here, locate
from actqkv_cli.model.catalogue import KnownModel, find
from actqkv_cli.model.files import ModelFiles, read_json
from actqkv_cli.model.synthetic import TOKENIZER, config_of
from actqkv_cli.output import note, print_json
from actqkv_cli.store.library import list_entries, scratch
from actqkv_cli.store.manifest import decisive

if TYPE_CHECKING:
    import torch

    from actqkv_cli.bench.machine import Compute, Disk
    from actqkv_cli.model.shape import Shape
    from actqkv_cli.store.manifest import Geometry, ReadingSettings

_QUESTION = 64  # tokens of a question with its template, about
_STEADY = 4  # windows with a full budget that are timed
_LAYER_BYTES = 64 << 20  # of weights at least, so that they do not all stay in a cache between windows
_CHARACTERS = 4.2  # a token, about: of English prose, by any of the catalogue's models
_CALIBRATED = 4600  # tokens that are read to calibrate a model, about
_TO_CONVERT, _CONVERTED = 20.0, 35e6  # seconds for the vocabulary, then parameters a second: of two cores


@dataclass(frozen=True)
class Estimate:
    """Seconds: of reading the document once (ingest), of re-reading it for one question, and of one question to the
    kept cache, the model loaded in both; pays_after: as many questions, None: never."""

    ingest: float
    reread: float
    question: float
    pays_after: int | None


@dataclass(frozen=True)
class Setup:
    """What a model's first document takes beside: bytes to fetch, and of the model on disk; seconds to convert and to
    calibrate it. How long the fetch takes is the network's to say."""

    fetch_bytes: int
    disk_bytes: int
    convert: float
    calibrate: float


def run(path: Path, synthetic: str | None, settings: Settings, as_json: bool) -> None:
    """Tokens, disk, time, and from which question on it pays. Loads a tokenizer and no weights."""
    document, source = read_document(path), synthetic_config(synthetic, settings)
    for warning in document.warnings:
        note(f"warning: {warning}")
    spec = _spec(synthetic, settings, as_json)
    absent = find(spec)
    if absent is None or is_here(absent, settings):
        files, absent = locate(spec, settings, as_json), None
        source = source or read_json(files.folder / "config.json")
    else:  # gigabytes are not fetched for a plan
        files, source = None, config_of(absent.shape)
    name = synthetic or (files.name if files else spec)
    import torch

    from actqkv_cli.bench.machine import measure_compute
    from actqkv_cli.engine.ingest import encode, geometry_of
    from actqkv_cli.model.config import parse_config
    from actqkv_cli.model.load import DTYPES, choose_device, choose_dtype
    from actqkv_cli.model.shape import causal_pairs
    from actqkv_cli.model.tokenizer import load_tokenizer

    config = parse_config(source)
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    shape, reading = config.shape, reading_of(settings)
    if files is None:
        tokens = math.ceil(len(document.text) / _CHARACTERS)
    else:
        tokens = len(encode(document, load_tokenizer(files)).ids)
    geometry = geometry_of(shape, dtype)
    size = disk_bytes(document, tokens, geometry, reading.baselines)
    place = next(folder for folder in (settings.home, *settings.home.absolute().parents) if folder.is_dir())
    if not as_json:
        note(f"measuring this machine with a few layers like those of {name} …")
    with _folder(settings.home) as folder, torch.inference_mode():
        compute = measure_compute(shape, DTYPES[dtype], device)
        if reading.prefill == "full":
            seconds = compute.estimate(shape, tokens, causal_pairs(tokens))
        else:
            window = _window_seconds(config, shape, geometry, device, reading, tokens, folder)
            seconds = tokens / reading.window * window
        disk = _disk(folder, settings.home)
    estimate = estimate_costs(shape, reading, geometry, tokens, sum(size.values()), compute, disk, seconds)
    setup = None
    if synthetic is None and (files is None or not _has_read(files, dtype, settings)):
        setup = _setup(absent, estimate, tokens)
    result = {
        "document": document.name,
        "pages": document.page_count,
        "tokens": tokens,
        "tokens_estimated": files is None,
        "model": name,
        "window": shape.window,
        "dtype": dtype,
        "device": str(device),
        "bytes": size,
        "bytes_total": sum(size.values()),
        "free": shutil.disk_usage(place).free,
        "estimate": asdict(estimate),
        "setup": asdict(setup) if setup else None,
        "rates": {"compute": asdict(compute), "disk": asdict(disk) if disk else None},
    }
    if as_json:
        print_json(result)
    else:
        sys.stdout.write(_text(result, estimate, setup))


def disk_bytes(document: Document, tokens: int, geometry: "Geometry", baselines: bool) -> dict[str, int]:
    """Sizes of the files that an ingest leaves, but for the manifest. Exact, if no two of the model's retrieval heads
    share a kv head; else the index is smaller."""
    from actqkv_cli.engine.calibration import HEADS
    from actqkv_cli.store.manifest import INDEX, METHODS, TOKENS
    from actqkv_cli.store.segment import segment_bytes
    from actqkv_cli.store.tensors import STORED, file_bytes, names_in

    blocks, per_segment = -(-tokens // geometry.block_size), geometry.segment_blocks
    rows = min(HEADS, geometry.layers * geometry.kv_heads)
    kept = {name: stored for name, stored in STORED.items() if baselines or stored.kept != "with baselines"}

    def size(file: str) -> int:
        return file_bytes({name: kept[name].like(geometry, tokens, rows) for name in names_in(file) if name in kept})

    return {
        "segments": sum(
            segment_bytes(geometry, min(per_segment, blocks - start)) for start in range(0, blocks, per_segment)
        ),
        "index": size(INDEX),
        "methods": size(METHODS),
        "tokens": size(TOKENS),
        "text": len(document.text.encode()),
    }


def estimate_costs(
    shape: "Shape", reading: "ReadingSettings", geometry: "Geometry", tokens: int, size: int, compute: "Compute",
    disk: "Disk | None", seconds: float,
) -> Estimate:  # fmt: skip
    """Ingest: `seconds` of reading, and `size` bytes written. Re-reading: `Compute.estimate` with full attention.

    A question goes through all layers once in both cases; kept, once more to scout, and the blocks of its budget are
    read from disk. It pays when ingest and questions together are less than re-reading as often.
    """
    from actqkv_cli.model.shape import causal_pairs
    from actqkv_cli.retrieval.policies import usual_budget

    # A question is too short to keep the arithmetic busy: it takes as long as its weights need to be read.
    weights = shape.layers * shape.layer_parameters * (4 if geometry.dtype == "float32" else 2)
    once = max(compute.estimate(shape, _QUESTION, _QUESTION * reading.budget), weights / compute.memory)
    blocks = usual_budget("hybrid", reading, geometry.block_size) // geometry.block_size
    read = geometry.layers * blocks * geometry.block_bytes
    question = 2 * once + (read / (disk.cold or disk.warm) if disk else 0)
    reread = once + compute.estimate(shape, tokens, causal_pairs(tokens))
    ingest = seconds + (size / disk.write if disk else 0)
    saved = reread - question
    return Estimate(ingest, reread, question, math.ceil(ingest / saved) if saved > 0 else None)


def _spec(synthetic: str | None, settings: Settings, quiet: bool) -> str:
    """The model whose tokenizer is asked: that of an ingest with these settings."""
    if synthetic is not None:
        return TOKENIZER
    return settings.model if settings.model != "default" else choose_default(settings, quiet).model.name


def _has_read(files: ModelFiles, dtype: str, settings: Settings) -> bool:
    """Whether a document of the library was read by this model, which is then calibrated."""
    ours = {**decisive(files.identity), "dtype": dtype}
    return any(entry.manifest and decisive(entry.manifest.model) == ours for entry in list_entries(settings.home))


def _setup(absent: KnownModel | None, estimate: Estimate, tokens: int) -> Setup:
    calibrate = _CALIBRATED * estimate.ingest / tokens + len(FACTS) * estimate.question
    if absent is None:
        return Setup(0, 0, 0.0, calibrate)
    return Setup(absent.fetch_bytes, absent.disk_bytes, _TO_CONVERT + absent.parameters / _CONVERTED, calibrate)


def synthetic_config(name: str | None, settings: Settings) -> dict[str, Any] | None:
    """What a synthetic model's config.json says; None if none is wanted. Raises UsageError for an unknown name, or if
    a real model is wanted too."""
    if name is not None and settings.model != "default":
        raise UsageError("--model and --synthetic-model exclude one another")
    return None if name is None else config_of(name)


def _window_seconds(
    config: Any, shape: "Shape", geometry: "Geometry", device: "torch.device", reading: "ReadingSettings", tokens: int,
    folder: Path,
) -> float:  # fmt: skip
    """What a window with a full budget takes: a few are really read, by as few of the model's layers as are beyond any
    cache, of random weights, and the time is taken times the layers that there are."""
    import torch

    from actqkv_cli.engine.prefill import prefill
    from actqkv_cli.model.load import DTYPES
    from actqkv_cli.store.manifest import synthetic_draft
    from actqkv_cli.store.writer import DocumentWriter

    dtype = DTYPES[geometry.dtype]
    layers = min(shape.layers, math.ceil(_LAYER_BYTES / (shape.layer_parameters * dtype.itemsize)))
    model = _thin(config, shape, layers, dtype, device)
    geometry = geometry.model_copy(update={"layers": layers})
    windows = math.ceil(min(reading.budget, tokens) / reading.window) + 1 + _STEADY
    ids = torch.randint(256, (windows * reading.window,))
    draft = synthetic_draft("plan", geometry, reading, len(ids))
    moments: list[float] = []
    with DocumentWriter.open(folder / draft.id, draft) as writer:
        prefill(model, ids, writer, geometry, reading, lambda position: moments.append(time.perf_counter()))
    steady = moments[-1 - _STEADY :]
    # The median leaves out the window at whose end a segment was written: writing is reckoned by the disk's rate.
    spent = [later - earlier for earlier, later in pairwise(steady)]
    return statistics.median(spent) * shape.layers / layers


def _thin(config: Any, shape: "Shape", layers: int, dtype: "torch.dtype", device: "torch.device") -> Any:
    """A random model of the same layers, but fewer, and of a small vocabulary, for reading needs no other."""
    import torch

    from actqkv_cli.model.causal_lm import CausalLM

    config = config.model_copy(update={"num_hidden_layers": layers, "vocab_size": 256})
    with torch.device(device):
        model = CausalLM(config, dtype).requires_grad_(False)
    model.draw_weights()
    return model


@contextlib.contextmanager
def _folder(home: Path) -> Iterator[Path]:
    """To measure in: on the library's disk, if that is ours to write on."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(scratch(home))
        except ActqkvError:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="actqkv-")))
        yield folder


def _disk(folder: Path, home: Path) -> "Disk | None":
    """None: a disk that is not the library's, or full, is left out of the estimate."""
    from actqkv_cli.bench.machine import measure_disk

    try:
        return measure_disk(folder) if folder.parent.samefile(home) else None
    except OSError:
        return None


def _text(result: dict[str, Any], estimate: Estimate, setup: Setup | None) -> str:
    tokens, window = result["tokens"], result["window"]
    total, free = result["bytes_total"], result["free"]
    beyond = "" if tokens <= window else f"; beyond the model's own window of {window:,}, so it would not answer well"
    speed = tokens / estimate.ingest
    about = "about " if result["tokens_estimated"] else ""
    lines = [
        f"{result['document']}: {result['pages']:,} pages, {about}{tokens:,} tokens of {result['model']}",
        f"on disk       {total / 1e9:.2f} GB, {total / tokens / 1e3:.0f} KB a token"
        + (f"; only {free / 1e9:.2f} GB are free" if free < total else f" ({free / 1e9:.0f} GB are free)"),
        f"reading it    about {_duration(estimate.ingest)}, {speed:,.0f} tokens/s",
        f"a question    about {_duration(estimate.question)} to its first token, with the model loaded",
        f"re-reading    about {_duration(estimate.reread)} for every question{beyond}",
    ]
    if setup and setup.fetch_bytes:
        lines.append(
            f"beforehand    {setup.fetch_bytes / 1e6:,.0f} MB to fetch, "
            f"then about {_duration(setup.convert)} to convert them; "
            f"the model takes {setup.disk_bytes / 1e9:.2f} GB on disk"
        )
    if setup:
        lines.append(f"once          about {_duration(setup.calibrate)} to calibrate the model, at its first document")
    if estimate.pays_after is None:
        lines.append("keeping it does not pay here: re-reading is as fast")
    else:
        lines.append(f"keeping it pays from question {estimate.pays_after:,} on")
    lines.append(f"(times are estimates, from a few seconds of measuring on {result['device']} in {result['dtype']})")
    return "\n".join(lines) + "\n"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.{2 if seconds < 10 else 0}f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
