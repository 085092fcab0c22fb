"""An answer as the commands tell it: on stdout while it is written, its sources behind it, or all of it as JSON."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from actqkv_cli import __version__
from actqkv_cli.output import note, note_hanging

if TYPE_CHECKING:
    from actqkv_cli.engine.answer import Answer
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


def show_sources(sources: Sequence[dict[str, Any]], supported: bool | None, answered: bool = True) -> None:
    """To stderr: on a terminal with the highlights bold and the lines wrapped, else a line for each."""
    if supported is False:
        note("\nNote: nothing of this answer stands in the sources.")
    elif not answered:
        note("\nNote: the document may not say; these passages come nearest.")
    note("\nSources:" if sources else "\nNo sources: nothing of the document was ranked.")
    for number, source in enumerate(sources, 1):
        head = f"{source['document']}, page {source['page']} ({source['score']:.0%})  "
        note_hanging(f"  {number}. ", [(head, False), ("“", False), *_quoted(source), ("”", False)])


def _quoted(source: dict[str, Any]) -> list[tuple[str, bool]]:
    """A source's text on one line, in pieces, and which of them are highlighted."""
    text, at = source["text"], 0
    pieces = [("… ", False)] if source["cut"][0] else []
    for start, end in source["highlight"]:
        pieces += [(text[at:start], False), (text[start:end], True)]
        at = end
    pieces += [(text[at:], False)] + ([(" …", False)] if source["cut"][1] else [])
    return [(re.sub(r"\s+", " ", piece), bold) for piece, bold in pieces]


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
