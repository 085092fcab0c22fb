"""actqkv ask: a question to a document in the library."""

import os
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from actqkv_cli import __version__
from actqkv_cli.commands.output import note, print_event, print_json
from actqkv_cli.config import Settings
from actqkv_cli.errors import UsageError
from actqkv_cli.store.library import find
from actqkv_cli.store.locks import reading

if TYPE_CHECKING:
    from actqkv_cli.engine.session import Run
    from actqkv_cli.retrieval.sources import Passage
    from actqkv_cli.store.reader import DocumentReader


class _Clock:
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


def run(
    question: str,
    selector: str | None,
    settings: Settings,
    output: str,
    explain: bool,
    quiet: bool,
    began: float,
) -> None:
    """Answer on stdout, sources on stderr after it (or everything as JSON). output: text, json or jsonl."""
    raw = sys.stdin.buffer.read() if question == "-" else os.fsencode(question)
    question = raw.decode(errors="replace")
    if not question.strip():
        raise UsageError("the question is empty")
    clock = _Clock(began)
    entry = find(settings.home, selector)
    with reading(settings.home, entry.id):
        import torch  # noqa: F401
        from transformers import AutoModelForCausalLM  # noqa: F401

        from actqkv_cli.commands.models import load, locate
        from actqkv_cli.engine.answer import Sampling, decode
        from actqkv_cli.engine.ingest import model_identity
        from actqkv_cli.engine.session import open_session
        from actqkv_cli.model.prompt import encode_question
        from actqkv_cli.retrieval.policies import usual_budget
        from actqkv_cli.retrieval.sources import passages_of
        from actqkv_cli.store.manifest import check_identity, decisive
        from actqkv_cli.store.reader import DocumentReader

        clock.lap("import")
        with DocumentReader(entry.folder) as reader:
            manifest = reader.manifest
            budget = settings.budget or usual_budget(settings.policy, manifest.reading, manifest.geometry.block_size)
            spec = manifest.model["name"] if settings.model == "default" else settings.model
            loaded = load(locate(spec, settings, quiet), manifest.geometry.dtype, settings)
            check_identity(decisive(manifest.model), decisive(model_identity(loaded)))
            clock.lap("load")
            with open_session(loaded.model, reader, budget) as session:
                clock.lap("index")
                encoded = encode_question(loaded.tokenizer, question.strip())
                started = session.start(encoded, settings.policy, room=settings.max_tokens)
                clock.lap("retrieve")
                clock.seconds["retrieve"] = round(started.scout_seconds, 4)
                sampling = Sampling(settings.temperature, settings.top_p, settings.seed, settings.max_tokens)
                clock.since_start("first_token")
                answer = decode(started, loaded.model, loaded.tokenizer, sampling, _writer(output))
            if output == "text":
                sys.stdout.write("\n")
                sys.stdout.flush()
            sources = passages_of(reader, started.ranking, started.attended)
            clock.since_start("total")
            result: dict[str, Any] = {
                "answer": answer.text,
                "finish": answer.finish,
                "sources": [{"document": manifest.source.name, **asdict(source)} for source in sources],
                "document": manifest.id,
                "model": manifest.model,
                "policy": settings.policy,
                "budget": budget,
                "seed": settings.seed,
                "usage": {
                    "document_tokens": manifest.tokens,
                    "question_tokens": len(encoded.ids),
                    "answer_tokens": answer.tokens,
                    "blocks": sum(len(blocks) for blocks in started.blocks_of_layers),
                    "bytes_read": asdict(reader.bytes_read),
                },
                "timings": clock.seconds,
                "version": __version__,
            }
            if explain:
                result["explain"] = {"blocks_per_layer": [blocks.tolist() for blocks in started.blocks_of_layers]}
    if output == "json":
        print_json(result)
    elif output == "jsonl":
        for source in result["sources"]:
            print_event("source", **source)
        print_event("done", **{key: value for key, value in result.items() if key != "sources"})
    elif not quiet:
        _show(result, manifest.source.name, sources)
    if explain and output == "text":
        _explain(started, reader)


def _writer(output: str) -> Any:
    def text(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    def event(piece: str) -> None:
        print_event("token", text=piece)

    write = {"text": text, "jsonl": event, "json": lambda piece: None}[output]
    held = ""  # white space, until something follows: at its end it is not of the answer

    def hold(piece: str) -> None:
        nonlocal held
        whole = held + piece
        shown = whole.rstrip()
        held = whole[len(shown) :]
        if shown:
            write(shown)

    return hold


def _show(result: dict[str, Any], name: str, sources: "list[Passage]") -> None:
    note("\nSources:" if sources else "\nNo sources: nothing of the document was ranked.")
    for number, source in enumerate(sources, 1):
        text = " ".join(source.text.split())
        note(f"  {number}. {name}, page {source.page} ({source.score:.0%})  “{text}”")
    times = result["timings"]
    read = sum(result["usage"]["bytes_read"].values())
    note(
        f"\n{result['usage']['answer_tokens']} tokens, {read / 1e6:,.1f} MB read; first token after "
        f"{times['first_token']:.2f} s (import {times['import']:.2f}, load {times['load']:.2f}, "
        f"index {times['index']:.2f}, retrieve {times['retrieve']:.2f}), total {times['total']:.2f} s"
    )


def _explain(run: "Run", reader: "DocumentReader") -> None:
    note(f"\nBlocks of {reader.manifest.geometry.block_size} tokens attended beside sink and local window:")
    for layer, blocks in enumerate(run.blocks_of_layers):
        note(f"  layer {layer:>3}: {len(blocks):>4} blocks: {' '.join(str(b) for b in blocks.tolist())}")
