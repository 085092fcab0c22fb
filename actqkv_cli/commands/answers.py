"""An answer as the commands tell it: on stdout while it is written, its sources behind it, or all of it as JSON."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from actqkv_cli import __version__
from actqkv_cli.commands.output import note

if TYPE_CHECKING:
    from actqkv_cli.engine.answer import Answer
    from actqkv_cli.engine.context import Source
    from actqkv_cli.engine.document import OpenDocument
    from actqkv_cli.engine.session import Run


class Clock:
    """Seconds of each stage, and of all."""

    def __init__(self, began: float) -> None:
        self._began = self._last = began
        self.seconds: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = round(now - self._last, 4)
        self._last = now

    def since_start(self, stage: str) -> None:
        self.seconds[stage] = round(time.perf_counter() - self._began, 4)


def bytes_read(documents: "Sequence[OpenDocument]") -> dict[str, int]:
    """Bytes read of all these documents for the question: cache blocks, the index, everything else."""
    traffics = [asdict(document.reader.bytes_read) for document in documents]
    return {kind: sum(traffic[kind] for traffic in traffics) for kind in traffics[0]}


def record(
    run: "Run", answer: "Answer", documents: "Sequence[OpenDocument]", policy: str, budget: int, seed: int
) -> dict[str, Any]:
    """All that is known of an answer, for JSON."""
    manifests = [document.reader.manifest for document in documents]
    sources = [source_record(source) for source in run.sources]
    one = {"document": manifests[0].id} if len(manifests) == 1 else {}
    return {
        "answer": answer.text,
        "finish": answer.finish,
        "sources": sources,
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


def source_record(source: "Source") -> dict[str, Any]:
    manifest = source.document.reader.manifest
    return {"document": manifest.source.name, "id": manifest.id, **asdict(source.passage)}


def show_sources(sources: Sequence[dict[str, Any]]) -> None:
    """To stderr."""
    note("\nSources:" if sources else "\nNo sources: nothing of the document was ranked.")
    for number, source in enumerate(sources, 1):
        text = " ".join(source["text"].split())
        note(f"  {number}. {source['document']}, page {source['page']} ({source['score']:.0%})  “{text}”")


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
