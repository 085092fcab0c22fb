"""One document from text to a committed store: identity, resume, prefill, index."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from actqkv_cli.documents import PAGE_SEPARATOR, Document
from actqkv_cli.engine.calibration import calibrate
from actqkv_cli.engine.methods import method_tensors
from actqkv_cli.engine.prefill import prefill
from actqkv_cli.errors import UsageError
from actqkv_cli.model.heads import Calibration, load_calibration, save_calibration
from actqkv_cli.model.load import LoadedModel
from actqkv_cli.model.prompt import EncodedDocument, encode_document
from actqkv_cli.model.shape import Shape
from actqkv_cli.model.tokenizer import Tokenizer
from actqkv_cli.progress import Progress
from actqkv_cli.retrieval.policy import head_rows
from actqkv_cli.store.library import document_id
from actqkv_cli.store.locks import write_lock
from actqkv_cli.store.manifest import TOKENS, Draft, Geometry, Manifest, ReadingSettings, SourceFile, decisive
from actqkv_cli.store.tensors import names_in
from actqkv_cli.store.writer import DocumentWriter


@dataclass(frozen=True)
class Ingested:
    """What an ingest did. resumed_at: tokens that an interrupted run had read before; seconds: of reading the rest."""

    manifest: Manifest
    resumed_at: int
    seconds: float
    warnings: tuple[str, ...]


def geometry_of(shape: Shape, dtype: str) -> Geometry:
    """What a model of this shape and number type stores."""
    sizes = {"layers": shape.layers, "kv_heads": shape.kv_heads, "head_dim": shape.head_dim}
    return Geometry.model_validate({**sizes, "dtype": dtype})


def model_identity(loaded: LoadedModel) -> dict[str, str]:
    """What must be equal for a stored cache to be this model's; "name" only tells where it came from."""
    return {**loaded.files.identity, "dtype": loaded.dtype}


def ingest(
    document: Document,
    loaded: LoadedModel,
    home: Path,
    cache: Path,
    reading: ReadingSettings,
    disk_limit: int | None,
    progress: Progress,
) -> Ingested:
    """Read a document into the library at `home`, or resume an interrupted ingest of it. Of one that is there, what
    other retrieval heads of its model see is stored anew, without reading it again.

    Raises UsageError when the settings do not fit document and model, DiskFull when there is no room or `disk_limit`
    bytes are not enough, StoreDamaged for what an earlier run left, ActqkvError where another process is at it.
    """
    encoded = encode(document, loaded.tokenizer)
    _check_window(loaded, reading, len(encoded.ids))
    shape, identity = loaded.model.config.shape, model_identity(loaded)
    geometry = geometry_of(shape, loaded.dtype)
    ours = document_id(
        document.name,
        document.sha256,
        {"model": decisive(identity), "geometry": geometry.model_dump(), "reading": reading.model_dump()},
    )
    folder = home / ours
    known = calibration_of(loaded, geometry, cache, progress)
    draft = Draft(
        id=ours,
        source=SourceFile(
            name=document.name,
            sha256=document.sha256,
            page_count=document.page_count,
            characters=len(document.text),
            extractor=document.extractor,
            skipped=list(document.skipped),
        ),
        model=identity,
        geometry=geometry,
        reading=reading,
        tokens=len(encoded.ids),
        document_start=encoded.start,
        retrieval_heads=known.heads,
    )
    with write_lock(home, ours), DocumentWriter.open(folder, draft, disk_limit) as writer:
        resumed_at = min(len(encoded.ids), sum(s.blocks for s in writer.segments) * geometry.block_size)
        began = time.monotonic()
        prefilled = prefill(
            loaded.model,
            encoded.ids,
            writer,
            geometry,
            reading,
            lambda position: progress("reading", position, len(encoded.ids)),
        )
        tensors = {**_tables(encoded), "representatives": prefilled.representatives.cpu()}
        tensors |= _head_keys(writer, draft, loaded)
        tensors |= method_tensors(prefilled, writer, geometry, reading, draft.tokens)
        manifest = writer.commit(document.text, tensors)
    return Ingested(manifest, resumed_at, time.monotonic() - began, tuple(writer.warnings))


def encode(document: Document, tokenizer: Tokenizer) -> EncodedDocument:
    """The stored part of the prompt. The pages together cover the text, separators included."""
    pages = []
    for index, (page, start) in enumerate(zip(document.pages, document.page_starts, strict=True)):
        before = PAGE_SEPARATOR if index else ""
        pages.append((page.number, start - len(before), before + page.text))
    return encode_document(tokenizer, pages)


def _check_window(loaded: LoadedModel, reading: ReadingSettings, tokens: int) -> None:
    native = loaded.model.config.max_position_embeddings
    if (reading.positions == "original" or reading.prefill == "full") and tokens > native:
        raise UsageError(
            f"the document has {tokens:,} tokens, and the model's own window {native:,}",
            "longer documents need --prefill windowed with --positions clamped or compact",
        )


def calibration_of(loaded: LoadedModel, geometry: Geometry, cache: Path, progress: Progress) -> Calibration:
    """The model's retrieval heads, which its first ingest finds."""
    identity = model_identity(loaded)
    if known := load_calibration(cache, identity):
        return known
    found = calibrate(
        loaded.model, loaded.tokenizer, geometry, cache, lambda done, total: progress("calibrating", done, total)
    )
    save_calibration(cache, identity, found)
    return found


def _head_keys(writer: DocumentWriter, draft: Draft, loaded: LoadedModel) -> dict[str, Tensor]:
    """The retrieval heads' keys for the whole document, `(rows, T, d)`, read back from the segments."""
    rows = head_rows(draft.retrieval_heads, loaded.model.config.num_attention_heads, draft.geometry.kv_heads)
    keys = []
    for layer in sorted({layer for layer, _ in rows}):
        heads = [head for row_layer, head in rows if row_layer == layer]
        parts = [blocks[:, 0, heads].transpose(0, 1).flatten(1, 2) for blocks in writer.read_layer(layer)]
        keys.append(torch.cat(parts, dim=1)[:, : draft.tokens])
    return {"head_keys": torch.cat(keys)} if keys else {}


def _tables(encoded: EncodedDocument) -> dict[str, Tensor]:
    return {name: getattr(encoded, name) for name in names_in(TOKENS)}
