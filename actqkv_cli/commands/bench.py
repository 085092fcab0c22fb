"""actqkv bench: measurements, each beside what it is compared with."""

import sys
from pathlib import Path
from typing import Any

from actqkv_cli.commands.models import load, locate
from actqkv_cli.commands.output import print_json, progress
from actqkv_cli.config import BUDGET, Settings, load_settings
from actqkv_cli.documents import read_document
from actqkv_cli.errors import UsageError
from actqkv_cli.store.library import find
from actqkv_cli.store.locks import reading


def quality(
    path: Path,
    selector: str,
    policies: list[str],
    budgets: list[int],
    limit: int | None,
    settings: Settings,
    as_json: bool,
) -> None:
    """A row for each policy and budget, and one for BM25, over the questions of one document in the library."""
    from actqkv_cli.bench.quality import LEXICAL, ask_all, lexical, read_questions, summary
    from actqkv_cli.engine.ingest import model_identity
    from actqkv_cli.store.manifest import check_identity, decisive
    from actqkv_cli.store.reader import DocumentReader

    for budget in budgets:
        load_settings(budget=budget)  # the same bounds as everywhere
    entry = find(settings.home, selector)
    questions = [question for question in read_questions(path) if question.document == entry.name][:limit]
    if not questions:
        raise UsageError(f"{path} has no questions on {entry.name}")
    with reading(settings.home, entry.id), DocumentReader(entry.folder) as reader:
        manifest = reader.manifest
        loaded = load(locate(manifest.model["name"], settings, quiet=as_json), manifest.geometry.dtype, settings)
        check_identity(decisive(manifest.model), decisive(model_identity(loaded)))
        rows = [summary(LEXICAL, None, lexical(reader, questions))]
        with progress("questions", quiet=as_json) as report:
            for policy in policies:
                for budget in budgets:
                    outcomes = []
                    for outcome in ask_all(loaded, reader, questions, policy, budget):
                        outcomes.append(outcome)
                        report(f"{policy} at {budget}", len(outcomes), len(questions))
                    rows.append(summary(policy, budget, outcomes))
    if as_json:
        print_json({"document": entry.id, "tokens": manifest.tokens, "rows": rows})
    else:
        sys.stdout.write(f"{entry.name}, {manifest.tokens:,} tokens, {len(questions)} questions\n")
        _table(rows)


def ingest(path: Path, rounds: int, settings: Settings, as_json: bool) -> None:
    """Tokens per second of reading a document, beside the stock model's."""
    from actqkv_cli.bench.ingest import measure
    from actqkv_cli.engine.ingest import encode

    document = read_document(path)
    loaded = load(locate(settings.model, settings, quiet=as_json), settings.dtype, settings)
    result = measure(loaded, encode(document, loaded.tokenizer).ids, settings.budget or BUDGET, rounds)
    if as_json:
        print_json(result)
    else:
        for key, value in result.items():
            sys.stdout.write(f"{key + ':':<25}{value}\n")


def _table(rows: list[dict[str, Any]]) -> None:
    columns = ["policy", "budget", "page_first", "page_in_three", "answered", "nll", "nll_interval"]
    cells = [columns, *[["" if row.get(c) is None else str(row[c]) for c in columns] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for row in cells:
        sys.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")
