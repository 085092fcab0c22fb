"""actqkv ask: questions to documents in the library."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actqkv_cli.answering import budget_of, bytes_read, documents, record, without_trailing_space
from actqkv_cli.commands.answers import Clock, show_sources
from actqkv_cli.config import Settings
from actqkv_cli.errors import UsageError
from actqkv_cli.output import note, print_event, print_json, write_out

if TYPE_CHECKING:
    from actqkv_cli.engine.run import Run
    from actqkv_cli.invocation import Invocation, Prompts
    from actqkv_cli.runtime import Runtime
    from actqkv_cli.terminal import Check

_BATCH = 8  # questions of a file that go through the model at once


@dataclass(frozen=True)
class Options:
    """docs: selectors of documents, none for the latest; all: every document; output: text, json or jsonl."""

    docs: Sequence[str]
    all: bool
    output: str
    explain: bool
    quiet: bool


def run(
    question: str | None, file: Path | None, options: Options, settings: Settings, call: "Invocation"
) -> "Prompts | None":
    """Answer a question, or every one of a file; without either, what is returned is a conversation."""
    call.delegate(settings.keep_alive)
    if question is not None and file is not None:
        raise UsageError("--file holds the questions: leave the other one out")
    if question is None and file is None:
        if options.output != "text" or not sys.stdin.isatty():
            raise UsageError("there is no question", 'actqkv ask "…", or - to read it from stdin')
        from actqkv_cli.commands.chat import converse

        return converse(options.docs, options.all, settings, call)
    with call.runtime() as runtime:
        if file is not None:
            _answer_file(file, options, settings, runtime, call.check)
        elif question is not None:
            _answer(question, options, settings, call.began, runtime, call.check)
    return None


def prepare(document: str, settings: Settings, runtime: "Runtime") -> None:
    """Load, open and index what the next question to a document needs. Raises what asking it raises."""
    _import()
    import torch

    from actqkv_cli.engine.session import session_over
    from actqkv_cli.model.prompt import encode_question
    from actqkv_cli.retrieval.policies import make_policy

    torch.cuda.empty_cache()  # what reading took
    entries = documents([document], False, settings.home)
    with (
        runtime.loaded(entries, settings, quiet=True) as (loaded, cache),
        cache.pinned(entry.folder for entry in entries) as opened,
        session_over(loaded.model, cache.context_of(opened), budget_of(settings, opened)) as session,
    ):
        make_policy(settings.policy, session.task(encode_question(loaded.tokenizer, "?")))
        opened[0].lexical("")
        opened[0].sentences(0)


def _answer(
    question: str, options: Options, settings: Settings, began: float, runtime: "Runtime", check: "Check"
) -> None:
    """Answer on stdout, sources on stderr after it (or everything as JSON)."""
    raw = sys.stdin.buffer.read() if question == "-" else os.fsencode(question)
    question = raw.decode(errors="replace").strip()
    if not question:
        raise UsageError("the question is empty")
    clock = Clock(began)
    entries = documents(options.docs, options.all, settings.home)
    _import()
    clock.lap("import")
    from actqkv_cli.engine.answer import Sampling, decode
    from actqkv_cli.engine.session import session_over
    from actqkv_cli.model.prompt import encode_question
    from actqkv_cli.retrieval.policies import make_policy

    with contextlib.ExitStack() as held:
        loaded, cache = held.enter_context(runtime.loaded(entries, settings, options.quiet))
        clock.lap("load")
        opened = held.enter_context(cache.pinned(entry.folder for entry in entries))
        budget = budget_of(settings, opened)
        with session_over(loaded.model, cache.context_of(opened), budget) as session:
            encoded = encode_question(loaded.tokenizer, question)
            policy = make_policy(settings.policy, session.task(encoded))  # which loads what it needs of the index
            clock.lap("index")
            (started,) = session.run([(policy, encoded)], max_tokens=settings.max_tokens)
            clock.seconds["retrieve"] = round(started.retrieve_seconds, 4)
            sampling = Sampling(settings.temperature, settings.top_p, settings.seed, settings.max_tokens)
            clock.since_start("first_token")
            write = without_trailing_space(_writer(options.output))
            answer = decode(started, loaded.tokenizer, loaded.stop_tokens, sampling, write, check)
        if options.output == "text":
            write_out("\n")
        result = record(started, answer, opened, settings.policy, budget, settings.seed)
        clock.since_start("total")
        result["usage"]["bytes_read"] = bytes_read(opened)
        result["timings"] = clock.seconds
    _show(result, started, options, opened[0].reader.manifest.geometry.block_size)


def _answer_file(path: Path, options: Options, settings: Settings, runtime: "Runtime", check: "Check") -> None:
    """Every question of a file, in order: a JSON object a line on stdout."""
    questions = read_questions(path)
    entries = documents(options.docs, options.all, settings.home)
    _import()
    from actqkv_cli.engine.answer import Sampling, decode_all
    from actqkv_cli.engine.session import session_over
    from actqkv_cli.model.prompt import encode_question

    sampling = Sampling(settings.temperature, settings.top_p, settings.seed, settings.max_tokens)
    with (
        runtime.loaded(entries, settings, options.quiet) as (loaded, cache),
        cache.pinned(entry.folder for entry in entries) as opened,
    ):
        budget = budget_of(settings, opened)
        with session_over(loaded.model, cache.context_of(opened), budget) as session:

            def step(runs: "list[Run]", tokens: list[int]) -> None:
                check()
                session.step(runs, tokens)

            for start in range(0, len(questions), _BATCH):
                batch = questions[start : start + _BATCH]
                encoded = [encode_question(loaded.tokenizer, line["question"]) for line in batch]
                runs = session.start_all([(q, settings.policy, None) for q in encoded], max_tokens=settings.max_tokens)
                answers = decode_all(runs, step, loaded.tokenizer, loaded.stop_tokens, sampling)
                for line, one, answer in zip(batch, runs, answers, strict=True):
                    result = record(one, answer, opened, settings.policy, budget, settings.seed)
                    fields = {**line, **result, **(_blocks(one) if options.explain else {})}
                    text = json.dumps(fields, ensure_ascii=False)
                    # Half a character of the user's has no bytes of its own: it stays the escape that it was.
                    sys.stdout.write(text.encode(errors="backslashreplace").decode() + "\n")
                    one.close()
                sys.stdout.flush()


def read_questions(path: Path) -> list[dict[str, Any]]:
    """Questions of a text file, one a line, or of JSON lines; - is stdin.

    Each as the line of its answer begins: the question, and of JSON lines the whole line as `input`, where no field of
    it meets one of ours. Raises UsageError.
    """
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    found = []
    for number, line in enumerate(data.decode("utf-8-sig", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        if path.suffix != ".jsonl":
            found.append({"question": line.strip()})
            continue
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{path}, line {number}: not JSON: {error}") from error
        question = fields.get("question") if isinstance(fields, dict) else None
        if not isinstance(question, str) or not question.strip():
            raise UsageError(f"{path}, line {number}: no question in it", 'a line is {"question": "…"}')
        found.append({"question": question.strip().encode(errors="replace").decode(), "input": fields})
    if not found:
        raise UsageError(f"there are no questions in {path}")
    return found


def _import() -> None:
    """What takes seconds, in one place, so that it can be told apart."""
    import torch  # noqa: F401

    import actqkv_cli.engine.session  # noqa: F401


def _writer(output: str) -> Callable[[str], None]:
    """What takes the pieces of an answer as they come."""
    if output == "text":
        return write_out
    return lambda piece: print_event("token", text=piece) if output == "jsonl" else None


def _blocks(run: "Run") -> dict[str, Any]:
    return {"explain": {"blocks_per_layer": [blocks.tolist() for blocks in run.blocks_of_layers]}}


def _show(result: dict[str, Any], run: "Run", options: Options, block_size: int) -> None:
    if options.explain:
        result |= _blocks(run)
    if options.output == "json":
        print_json(result)
    elif options.output == "jsonl":
        for source in result["sources"]:
            print_event("source", **source)
        print_event("done", **{key: value for key, value in result.items() if key != "sources"})
    elif not options.quiet:
        show_sources(result["sources"], result["supported"], result["answered"])
        _show_times(result)
    if options.explain and options.output == "text":
        note(f"\nBlocks of {block_size} tokens attended beside the sink:")
        for layer, blocks in enumerate(run.blocks_of_layers):
            note(f"  layer {layer:>3}: {len(blocks):>4} blocks: {' '.join(str(b) for b in blocks.tolist())}")


def _show_times(result: dict[str, Any]) -> None:
    times = result["timings"]
    read = sum(result["usage"]["bytes_read"].values())
    note(
        f"\n{result['usage']['answer_tokens']} tokens, {read / 1e6:,.1f} MB read; first token after "
        f"{times['first_token']:.2f} s (import {times['import']:.2f}, load {times['load']:.2f}, "
        f"index {times['index']:.2f}, retrieve {times['retrieve']:.2f}), total {times['total']:.2f} s"
    )
