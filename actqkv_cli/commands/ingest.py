"""actqkv ingest: documents into the library."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actqkv_cli.config import BUDGET, Settings
from actqkv_cli.documents import Document, find_documents, read_document, read_stream
from actqkv_cli.errors import ActqkvError, DiskFull, DocumentError, OutOfMemory, OverDiskLimit, UsageError
from actqkv_cli.failures import foreseen
from actqkv_cli.loading import is_here, locate
from actqkv_cli.model.catalogue import find
from actqkv_cli.model.files import ModelFiles
from actqkv_cli.model.heads import load_calibration
from actqkv_cli.output import PartlyFailed, note, note_error, print_json, progress
from actqkv_cli.store.library import list_entries, sweep
from actqkv_cli.store.manifest import Manifest, ReadingSettings, Unfinished, decisive

if TYPE_CHECKING:
    from actqkv_cli.invocation import Invocation


def run(paths: list[str], name: str | None, settings: Settings, as_json: bool, quiet: bool, call: "Invocation") -> None:
    """Ingest every document that `paths` name; one that fails costs itself, and the first to fail says the exit code.

    What no document could be read for ends it at once: no model, no memory, a full disk.
    """
    if "-" in paths and (len(paths) > 1 or not name):
        raise UsageError("stdin (-) is one document and needs a name", "cat FILE | actqkv ingest - --name NAME")
    if name and paths != ["-"]:
        raise UsageError("--name is for stdin (-) only", "a file is known by its own name")
    if name and len(name) > 255:
        raise UsageError("--name has more than 255 characters")
    call.delegate(settings.keep_alive)
    files = [] if paths == ["-"] else find_documents([Path(path) for path in paths])
    sweep(settings.home)
    several, failures = len(files) > 1, list[ActqkvError]()
    documents = _documents(files, name, failures, several)
    results: list[dict[str, Any]] = []
    reading, chosen = reading_of(settings), None
    with progress(quiet) as report, call.runtime() as runtime:
        for document in documents:
            for warning in document.warnings:
                note(f"warning: {warning}")
            if settings.model != "default":
                chosen = chosen or locate(settings.model, settings, quiet)
            known = _known(document, chosen, reading, settings)
            if isinstance(known, Manifest) and _index_is_current(known, settings):
                results.append(_row(known, document, unchanged=True))
                if not quiet:
                    note(_summary(results[-1]))
                continue
            if known is not None and settings.model == "default":  # one chosen anew might be another, and start over
                files_of_model = locate(known.model["name"], settings, quiet)
            else:
                chosen = files_of_model = chosen or locate(settings.model, settings, quiet)
            loaded = runtime.reading_model(files_of_model, settings)
            from actqkv_cli.engine.ingest import ingest

            try:
                done = ingest(document, loaded, settings.home, settings.cache, reading, settings.disk_limit, report)
            except (ActqkvError, OSError) as error:
                failure = foreseen(error)
                if isinstance(failure, OutOfMemory | DiskFull) and not isinstance(failure, OverDiskLimit):
                    raise PartlyFailed(failure, _result(results, failures)) from error
                failures.append(_failed(failure, f"{document.name}: ", several))
                continue
            for warning in done.warnings:
                note(f"warning: {warning}")
            results.append(_row(done.manifest, document, False, done.resumed_at, done.seconds))
            if not quiet:
                note(_summary(results[-1]))
    if results:
        call.prepare(results[-1]["id"], settings)
    if failures:
        first = failures[0]
        many = type(first)(f"{len(failures)} of {len(files)} documents could not be read")
        raise PartlyFailed(many if several else first, _result(results, failures))
    if as_json:
        print_json(_result(results, failures))


def reading_of(settings: Settings) -> ReadingSettings:
    """How a document is read with these settings."""
    same = settings.model_dump(include={"window", "positions", "prefill", "representative", "score", "baselines"})
    return ReadingSettings(sink=64, local=512, budget=settings.budget or BUDGET, **same)


def _known(
    document: Document, chosen: ModelFiles | None, reading: ReadingSettings, settings: Settings
) -> Manifest | Unfinished | None:
    """The document as it is in the library already, read by this model in this way; found without loading the model.

    chosen: None where the user leaves the choice to us. Then any model of the catalogue will do, for the one that
    would be chosen now depends on the memory that happens to be free; and an unfinished ingest is to be gone on with.
    """
    unfinished = None
    for entry in list_entries(settings.home):
        record = entry.manifest or entry.progress
        if (
            record is not None
            and (record.source.name, record.source.sha256) == (document.name, document.sha256)
            and record.reading == reading
            and settings.dtype in ("auto", record.model["dtype"])
            and _read_by(record, chosen, settings)
        ):
            if entry.manifest is not None:
                return entry.manifest
            unfinished = unfinished or (entry.progress if settings.model == "default" else None)
    return unfinished


def _index_is_current(manifest: Manifest, settings: Settings) -> bool:
    """Whether its index is of the retrieval heads that are known of its model, if any are. With baselines it counts
    as such: to make it anew the document would have to be read again."""
    known = load_calibration(settings.cache, manifest.model)
    return known is None or known.heads == manifest.retrieval_heads or manifest.reading.baselines


def _read_by(record: Unfinished, chosen: ModelFiles | None, settings: Settings) -> bool:
    if settings.model == "default":
        model = find(record.model["name"])
        if model is None:
            return False
        if not is_here(model, settings):  # it is the same when it comes back: its checksum is known
            return True
        chosen = locate(model.name, settings, quiet=True)
    assert chosen is not None
    return decisive(record.model) == {**decisive(chosen.identity), "dtype": record.model["dtype"]}


def _row(
    manifest: Manifest, document: Document, unchanged: bool, resumed_at: int = 0, seconds: float = 0.0
) -> dict[str, Any]:
    return {
        "id": manifest.id,
        "name": document.name,
        "pages": document.page_count,
        "tokens": manifest.tokens,
        "bytes": sum(file.bytes for file in (*manifest.segments, manifest.index, manifest.methods) if file),
        "unchanged": unchanged,
        "resumed_at": resumed_at,
        "seconds": round(seconds, 3),
    }


def _documents(files: list[Path], name: str | None, failures: list[ActqkvError], several: bool) -> Iterator[Document]:
    if name:
        yield read_stream(sys.stdin.buffer, name)
    for path in files:
        try:
            document = read_document(path)
        except DocumentError as error:
            failures.append(_failed(error, "", several))
        else:
            yield document


def _failed(error: ActqkvError, of: str, several: bool) -> ActqkvError:
    """A failure that costs one document, told at once where others follow, and without what its traceback holds."""
    failure = type(error)(of + error.message, error.hint)
    if several:
        note_error(failure)
    return failure


def _result(results: list[dict[str, Any]], failures: list[ActqkvError]) -> dict[str, Any]:
    return {"documents": results, "failed": [failure.message for failure in failures]}


def _summary(result: dict[str, Any]) -> str:
    what = f"{result['name']} ({result['pages']} pages, {result['tokens']:,} tokens)"
    if result["unchanged"]:
        return f"{what} is in the library already, as {result['id']}"
    if result["resumed_at"] == result["tokens"]:
        return f"completed {what} in {result['seconds']:.1f} s as {result['id']}"
    speed = (result["tokens"] - result["resumed_at"]) / max(result["seconds"], 1e-9)
    resumed = f", resumed at token {result['resumed_at']:,}" if result["resumed_at"] else ""
    return (
        f"read {what} in {result['seconds']:.1f} s, {speed:,.0f} tokens/s{resumed}; "
        f"{result['bytes'] / 1e6:,.0f} MB as {result['id']}"
    )
