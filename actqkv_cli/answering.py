"""What every way of asking shares: which documents are meant, the budget, and the record of an answer."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actqkv_cli import __version__
from actqkv_cli.config import Settings
from actqkv_cli.errors import UsageError
from actqkv_cli.output import note
from actqkv_cli.store.library import Entry, find, list_entries

if TYPE_CHECKING:
    from actqkv_cli.engine.answer import Answer
    from actqkv_cli.engine.document import OpenDocument
    from actqkv_cli.engine.run import Run


def documents(docs: Sequence[str | None], all_documents: bool, home: Path) -> list[Entry]:
    """The committed documents that are meant, each once; None, or no docs: the latest. Raises what `find` raises."""
    if all_documents and docs:
        raise UsageError("--all is every document: leave --doc out")
    if not all_documents:
        found = [find(home, doc) for doc in docs or [None]]
        return list({entry.id: entry for entry in found}.values())
    entries = list_entries(home)
    for entry in entries:
        if entry.manifest is None:
            note(f"warning: {entry.id} is {entry.state}, and left out")
    whole = [entry for entry in entries if entry.manifest is not None]
    return whole or [find(home, None)]  # which says what is wrong


def budget_of(settings: Settings, opened: "Sequence[OpenDocument]", turn_blocks: int = 0) -> int:
    """Tokens per layer: as it is set, else what suits the policy, and a conversation of so many blocks."""
    from actqkv_cli.retrieval.policies import usual_budget

    manifest = opened[0].reader.manifest
    return settings.budget or usual_budget(settings.policy, manifest.reading, manifest.geometry.block_size, turn_blocks)


def without_trailing_space(write: Callable[[str], None]) -> Callable[[str], None]:
    """Holds white space back until something follows: at its end it is not of the answer."""
    held = ""

    def hold(piece: str) -> None:
        nonlocal held
        whole = held + piece
        shown = whole.rstrip()
        held = whole[len(shown) :]
        if shown:
            write(shown)

    return hold


def bytes_read(documents: "Sequence[OpenDocument]") -> dict[str, int]:
    """Bytes read of all these documents for the question: cache blocks, the index, everything else."""
    traffics = [asdict(document.reader.bytes_read) for document in documents]
    return {kind: sum(traffic[kind] for traffic in traffics) for kind in traffics[0]}


def record(
    run: "Run", answer: "Answer", documents: "Sequence[OpenDocument]", policy: str, budget: int, seed: int
) -> dict[str, Any]:
    """All that is known of an answer, for JSON."""
    from actqkv_cli.engine.confidence import trust

    manifests = [document.reader.manifest for document in documents]
    one = {"document": manifests[0].id} if len(manifests) == 1 else {}
    trusted = trust(answer, run.ranking, run.coverage)
    return {
        "answer": answer.text,
        "answered": trusted.answered,
        "confidence": round(trusted.confidence, 3),
        "finish": answer.finish,
        **cited(run, answer.text),
        **one,
        "documents": [manifest.id for manifest in manifests],
        "model": manifests[0].model,
        "policy": policy,
        "budget": budget,
        "seed": seed,
        "usage": {
            "document_tokens": sum(manifest.tokens for manifest in manifests),
            "question_tokens": len(run.question.ids),
            "answer_tokens": answer.tokens,
            "blocks": sum(len(blocks) for blocks in run.blocks_of_layers),
        },
        "version": __version__,
    }


def cited(run: "Run", answer: str) -> dict[str, Any]:
    """The sources as far as they are shown, with the sentences that carry the answer, and whether any of it stands in
    them: None where it has no words of its own (a yes, or what the question says already), or there are no sources."""
    from actqkv_cli.retrieval.excerpt import excerpts

    found = [(source.document.reader, source.passage) for source in run.sources]
    shown, support = excerpts(found, run.question.text, answer)
    sources = []
    for reader, excerpt in shown:
        where = {"document": reader.manifest.source.name, "id": reader.manifest.id}
        sources.append({**where, **asdict(excerpt.passage), "highlight": excerpt.highlight, "cut": excerpt.cut})
    return {"supported": None if support is None else support > 0, "sources": sources}
