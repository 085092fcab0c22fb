"""Every question of a bench under every setting: documents are read once each, results kept as they come."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from actqkv_cli import __version__
from actqkv_cli.bench import results, yardsticks
from actqkv_cli.bench.examples import Example
from actqkv_cli.bench.paired import Measured, Setting
from actqkv_cli.bench.quality import (
    TOGETHER,
    document_name,
    document_of,
    judge,
    make_row,
    measure_answers,
    measure_fidelity,
)
from actqkv_cli.engine.confidence import declines
from actqkv_cli.engine.context import context_of
from actqkv_cli.engine.document import OpenDocument
from actqkv_cli.engine.ingest import ingest, model_identity
from actqkv_cli.engine.session import session_over
from actqkv_cli.model.load import LoadedModel
from actqkv_cli.model.stock import stock_model
from actqkv_cli.progress import Progress
from actqkv_cli.store.library import find, list_entries, remove
from actqkv_cli.store.locks import read_lock
from actqkv_cli.store.manifest import ReadingSettings, check_identity, decisive
from actqkv_cli.store.reader import DocumentReader


def measure_all(
    loaded: LoadedModel,
    examples: Sequence[Example],
    plan: Sequence[Setting],
    how: ReadingSettings,
    generate: bool,
    home: Path,
    cache: Path,
    folder: Path,
    together: bool,
    progress: Progress,
) -> list[Measured]:
    """What all examples measure under all settings of `plan`; what `folder` has already is not measured again.

    home: the library of the documents that examples name; contexts are read into `folder`, one at a time, as `how`
    says; together: every question is put to all documents, side by side. Raises UsageError if `folder` holds another
    run, and whatever ingest and sessions raise.
    """
    described = {
        "version": __version__,
        "model": model_identity(loaded),
        "reading": how.model_dump(),
        "settings": [list(setting) for setting in plan],
        "generate": generate,
        "together": together,
        "examples": hashlib.sha256(repr(examples).encode()).hexdigest(),
    }
    wanted = {_key(example): len(_settings(example, plan)) for example in examples}
    rows = results.resume(folder, described, wanted)
    done = {(row.task, row.document, row.example) for row in rows}
    groups: dict[tuple[str, str], list[Example]] = {}
    for example in examples:
        groups.setdefault((example.document, example.context), []).append(example)
    max_budget = max(budget for _, budget in plan) or None
    policies = [setting for setting in plan if setting[0] not in yardsticks.YARDSTICKS]
    stock = stock_model(loaded.model) if len(policies) < len(plan) else None
    num_done = 0
    for keys in [list(groups)] if together else [[key] for key in groups]:
        asked = [(doc_index, example) for doc_index, key in enumerate(keys) for example in groups[key]]
        remaining = [(doc_index, example) for doc_index, example in asked if _key(example) not in done]
        num_done += len(asked) - len(remaining)
        if not remaining:
            continue
        with contextlib.ExitStack() as stack:
            documents = []
            for name, context in keys:
                if name:
                    opened = _library_document(loaded, home, name)
                else:
                    opened = _scratch_document(loaded, folder / "library", context, how, cache, progress)
                documents.append(OpenDocument(stack.enter_context(opened), loaded.device))
            side_by_side = context_of(documents, loaded.model)
            for batch in _batches(remaining, len(policies) if generate else TOGETHER):
                with session_over(loaded.model, side_by_side, max_budget) as session:
                    if generate:
                        found = list(measure_answers(loaded, session, batch, policies))
                    else:
                        found = [
                            row
                            for doc_index, example in batch
                            for row in measure_fidelity(loaded, session, doc_index, example, policies)
                        ]
                    given: dict[Setting, list[tuple[str, Example]]] = {}
                    for doc_index, example in batch:
                        texts = yardsticks.texts(
                            session, loaded.tokenizer, doc_index, example, _settings(example, plan)
                        )
                        for setting, text in texts.items():
                            given.setdefault(setting, []).append((text, example))
                for setting, read in given.items():
                    for (_, example), answer in zip(read, yardsticks.stock_answers(stock, loaded, read), strict=True):
                        values = judge(example, answer, not declines(answer))
                        found.append(make_row(example, side_by_side, setting, values, answer))
                results.append(folder, found)
                rows += found
                num_done += len(batch)
                progress("asking/questions", num_done, len(examples))
    return rows


def _key(example: Example) -> tuple[str, str, str]:
    return example.task, document_name(example), example.id


def _settings(example: Example, plan: Sequence[Setting]) -> list[Setting]:
    """Those of `plan` that a question is asked under: one without an answer has no passage for yardsticks to read."""
    return [setting for setting in plan if example.answers or setting[0] not in yardsticks.YARDSTICKS]


def _batches(asked: Sequence[tuple[int, Example]], settings: int) -> Iterator[list[tuple[int, Example]]]:
    """Questions of the same length of answer, as many as go through the model together under so many settings."""
    for _, alike in groupby(asked, key=lambda one: one[1].max_tokens):
        batch = list(alike)
        size = max(1, TOGETHER // max(settings, 1))
        yield from (batch[start : start + size] for start in range(0, len(batch), size))


@contextlib.contextmanager
def _library_document(loaded: LoadedModel, home: Path, name: str) -> Iterator[DocumentReader]:
    entry = find(home, name)
    with read_lock(home, entry.id), DocumentReader(entry.folder) as reader:
        check_identity(decisive(reader.manifest.model), decisive(model_identity(loaded)))
        yield reader


@contextlib.contextmanager
def _scratch_document(
    loaded: LoadedModel, library: Path, context: str, how: ReadingSettings, cache: Path, progress: Progress
) -> Iterator[DocumentReader]:
    """A context, read with all that the compared methods need, and removed when its questions are answered."""
    document = document_of(context)
    known = [entry.folder for entry in list_entries(library) if entry.manifest and entry.name == document.name]
    how = how.model_copy(update={"baselines": True})
    store = known[0] if known else library / ingest(document, loaded, library, cache, how, None, progress).manifest.id
    with DocumentReader(store) as reader:
        yield reader
    for entry in list_entries(library):
        if entry.folder == store:
            remove(library, entry)
