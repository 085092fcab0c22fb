"""The command line: options and help only. A command's module is imported when the command runs."""

import sys
from collections.abc import Generator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from actqkv_cli import __version__
from actqkv_cli.retrieval.names import policy_names

if TYPE_CHECKING:
    from actqkv_cli.config import Settings

Record = TypeVar("Record")

app = typer.Typer(
    name="actqkv",
    help="Read a long document once with a local language model, and ask it questions for ever after.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Options that several commands have.
Home = Annotated[
    Path | None,
    typer.Option(help="The library's folder. [env: ACTQKV_HOME; default: the user's data folder]"),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, also on error.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Picture = Annotated[Path | None, typer.Option(help="Draw it: a .png or .svg file.")]
Offline = Annotated[bool | None, typer.Option("--offline", help="Never use the network.")]
KeepAlive = Annotated[
    str | None,
    typer.Option(help="How long a worker keeps the model loaded: 90s, 10m, 2h; 0: none. [default: 10m]"),
]

# How a document is read.
Document = Annotated[Path, typer.Argument(help="A document.")]
Model = Annotated[
    str | None,
    typer.Option(
        help="A name of `actqkv models`, Hugging Face id, folder or GGUF file. "
        "[default: the largest of `actqkv models` that fits in memory]"
    ),
]
SyntheticModel = Annotated[
    str | None,
    typer.Option(help="A random model of a named shape, not a real one: llama-3.1-8b, qwen2.5-7b, smollm2-135m, …"),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps. [default: auto]")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16. [default: auto]")]
Window = Annotated[int | None, typer.Option(help="Tokens read at once, 128 to 4096; try 2048 on a GPU. [default: 512]")]
ReadingBudget = Annotated[int | None, typer.Option(help="Tokens attended per layer beside the window. [default: 2048]")]
Positions = Annotated[
    str | None,
    typer.Option(
        help="Where retrieved keys stand while reading: clamped, compact or original (short documents). "
        "[default: clamped]"
    ),
]
Prefill = Annotated[
    str | None, typer.Option(help="windowed, or full: exact and quadratic, while it fits. [default: windowed]")
]
Baselines = Annotated[
    bool | None,
    typer.Option("--baselines", help="Also keep what only those policies need that serve as comparison."),
]

# How it is asked.
Docs = Annotated[
    list[str] | None,
    typer.Option("--doc", help="Document: id, name or a part; several are asked as one. [default: the latest]"),
]
All = Annotated[bool, typer.Option("--all", help="All documents of the library, asked as one.")]
Policy = Annotated[
    str | None, typer.Option(help=f"How blocks are retrieved: {', '.join(policy_names())}. [default: hybrid]")
]
Budget = Annotated[
    int | None,
    typer.Option(
        help="Tokens attended per layer beside the question, at most. "
        "[default: what suits the policy, 576 with hybrid; else as at ingest]"
    ),
]
MaxTokens = Annotated[int | None, typer.Option(help="The longest answer. [default: 128]")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy. [default: 0]")]
AskedModel = Annotated[str | None, typer.Option(help="Where the document's model is now. [default: where it was]")]

Rounds = Annotated[int, typer.Option(help="How often everything is run.", min=1)]


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
    context: typer.Context,
    paths: Annotated[list[str], typer.Argument(help="Files (.pdf, .txt, .md), folders, or - for stdin.")],
    name: Annotated[str | None, typer.Option(help="The document's name, for stdin.")] = None,
    model: Model = None,
    budget: ReadingBudget = None,
    window: Window = None,
    positions: Positions = None,
    prefill: Prefill = None,
    baselines: Baselines = None,
    device: Device = None,
    dtype: Dtype = None,
    disk_limit: Annotated[
        str | None, typer.Option(help="What the library may take: 20GB, or bytes. [default: no limit]")
    ] = None,
    offline: Offline = None,
    home: Home = None,
    keep_alive: KeepAlive = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Read documents into the library. An interrupted ingest resumes; an unchanged file is skipped.

    Where one of several files fails, the others are read all the same; the exit code is that of the first failure.
    """
    from actqkv_cli.commands import ingest as command

    command.run(paths, name, _settings(locals()), as_json, quiet, context.obj)


@app.command()
def ask(
    context: typer.Context,
    question: Annotated[
        str | None, typer.Argument(help="The question, or - to read it from stdin. [default: a conversation]")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            help="Questions, one a line, or lines of JSON with a field question (.jsonl). Each is answered, in order, "
            "by a line of JSON: what --json tells, the question, and your own line of JSON, whole, as input.",
        ),
    ] = None,
    doc: Docs = None,
    all_documents: All = False,
    policy: Policy = None,
    budget: Budget = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest tokens of this share. [default: 1]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the draw. [default: 0]")] = None,
    model: AskedModel = None,
    device: Device = None,
    offline: Offline = None,
    home: Home = None,
    keep_alive: KeepAlive = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show the blocks that each layer attended to.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="A stream of JSON events, one a line.")] = False,
) -> Generator[str, str | None, None] | None:
    """Answer a question from a document, with the pages that the answer rests on."""
    from actqkv_cli.commands import ask as command

    output = "jsonl" if jsonl else "json" if as_json else "text"
    options = command.Options(doc or [], all_documents, output, explain, quiet)
    return command.run(question, file, options, _settings(locals()), context.obj)


@app.command()
def chat(
    context: typer.Context,
    doc: Docs = None,
    all_documents: All = False,
    policy: Policy = None,
    budget: Budget = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    model: AskedModel = None,
    device: Device = None,
    offline: Offline = None,
    home: Home = None,
    keep_alive: KeepAlive = None,
) -> Generator[str, str | None, None]:
    """Talk about a document: a conversation that remembers what was said."""
    from actqkv_cli.commands import chat as command

    return command.run(doc or [], all_documents, _settings(locals()), context.obj)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Where to listen; all but the loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free one.", min=0, max=65535)] = 8642,
    token: Annotated[
        str | None,
        typer.Option(help="What clients must send as API key. Others may see it here: rather set ACTQKV_TOKEN."),
    ] = None,
    doc: Annotated[
        str | None, typer.Option("--doc", help="The document whose model is loaded. [default: the latest]")
    ] = None,
    model: AskedModel = None,
    device: Device = None,
    offline: Offline = None,
    home: Home = None,
) -> None:
    """Answer as OpenAI's chat completions do, until Ctrl-C: a document is a model, or a field "documents"."""
    from actqkv_cli.commands import serve as command

    command.run(host, port, doc, _settings(locals()))


@app.command()
def ls(home: Home = None, as_json: Json = False) -> None:
    """List the documents, the latest first."""
    from actqkv_cli.commands import library

    library.ls(_settings(locals()), as_json)


@app.command()
def show(
    doc: Annotated[str | None, typer.Argument(help="Id, name, or a part of them. [default: the latest]")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show what a document's store holds and how it was made."""
    from actqkv_cli.commands import library

    library.show(doc, _settings(locals()), as_json)


@app.command()
def rm(
    docs: Annotated[list[str], typer.Argument(help="Ids or names.")],
    yes: Yes = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Remove documents from the library. Asks first."""
    from actqkv_cli.commands import library

    library.rm(docs, _settings(locals()), yes, as_json)


@app.command()
def verify(
    doc: Annotated[str | None, typer.Argument(help="Id or name. [default: all documents]")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Check every checksum of a document, and that its model is still the one that read it."""
    from actqkv_cli.commands import library

    library.verify(doc, _settings(locals()), as_json)


models = typer.Typer(help="The models that are known by name.", invoke_without_command=True)
app.add_typer(models, name="models")
Name = Annotated[str, typer.Argument(help="As `actqkv models` lists it.")]


@models.callback()
def models_list(context: typer.Context, device: Device = None, as_json: Json = False) -> None:
    """The models that are known by name: what they take, which are here, and which is the default."""
    if context.invoked_subcommand is None:
        from actqkv_cli.commands import models as command

        command.ls(_settings(locals()), as_json)


@models.command("fetch")
def models_fetch(name: Name, offline: Offline = None, quiet: Quiet = False, as_json: Json = False) -> None:
    """Fetch a model and convert it, ahead of its first use. An interrupted fetch is resumed."""
    from actqkv_cli.commands import models as command

    command.fetch(name, _settings(locals()), quiet, as_json)


@models.command("rm")
def models_rm(name: Name, yes: Yes = False, as_json: Json = False) -> None:
    """Remove a model from this machine. Asks first; documents that it has read need it again."""
    from actqkv_cli.commands import models as command

    command.rm(name, _settings(locals()), yes, as_json)


worker = typer.Typer(help="The background process that keeps the model loaded between questions.", no_args_is_help=True)
app.add_typer(worker, name="worker")


@worker.command("status")
def worker_status(as_json: Json = False) -> None:
    """Whether a worker runs, what it holds, and until when."""
    from actqkv_cli.commands import worker as command

    command.status(as_json)


@worker.command("stop")
def worker_stop() -> None:
    """End the worker."""
    from actqkv_cli.commands import worker as command

    command.stop()


@app.command()
def plan(
    path: Document,
    model: Model = None,
    synthetic_model: SyntheticModel = None,
    budget: ReadingBudget = None,
    baselines: Baselines = None,
    device: Device = None,
    dtype: Dtype = None,
    offline: Offline = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Say what reading a document would take here, and whether keeping its cache pays, before any work is done."""
    from actqkv_cli.commands import plan as command

    command.run(path, synthetic_model, _settings(locals()), as_json)


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
    policies: Annotated[
        str,
        typer.Option(
            help="Comma-separated; also gold, the stock model on a question's own passage, and reread, on the text of "
            "the blocks that hybrid attends to."
        ),
    ] = "full,hybrid,heads,lexical,actqkv,acre,streaming",
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
    generate: Annotated[
        bool, typer.Option("--generate", help="Score decoded answers, not the right one's likelihood (slow).")
    ] = False,
    unanswerable: Annotated[
        bool, typer.Option("--unanswerable", help="Also ask every document the questions of another one.")
    ] = False,
    together: Annotated[
        bool, typer.Option("--together", help="Put every question to all documents at once, not to its own alone.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="A folder that keeps what was measured: an interrupted run goes on there.")
    ] = None,
    picture: Picture = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="The table in Markdown.")] = False,
    model: Model = None,
    positions: Positions = None,
    prefill: Prefill = None,
    device: Device = None,
    dtype: Dtype = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Policies side by side at equal budgets: fidelity to full attention, what is found, and what is answered."""
    from actqkv_cli.commands import bench as command

    command.quality(_filled(command.Quality, locals()), _settings(locals()))


@bench.command("speed")
def bench_speed(
    file: Annotated[Path | None, typer.Argument(help="A document. [default: a text made for it]")] = None,
    doc: Annotated[str | None, typer.Option("--doc", help="A document of the library in its place.")] = None,
    tokens: Annotated[int, typer.Option(help="Of the text made for it.", min=1000)] = 16_000,
    rounds: Rounds = 3,
    max_tokens: Annotated[int, typer.Option(help="Of an answer, and of decoding.", min=2)] = 64,
    stock_tokens: Annotated[
        int, typer.Option(help="The longest document that the stock model re-reads: that is quadratic.", min=0)
    ] = 16_384,
    full_tokens: Annotated[
        int, typer.Option(help="How much of the document is read anew, by every reader.", min=1)
    ] = 8192,
    picture: Picture = None,
    model: Model = None,
    synthetic_model: SyntheticModel = None,
    policy: Policy = None,
    budget: Annotated[int | None, typer.Option(help="Tokens, of reading and decoding. [default: 2048]")] = None,
    device: Device = None,
    dtype: Dtype = None,
    offline: Offline = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Answers by stock re-reading, by loading the whole cache, and by retrieval: cold and warm, in a fresh process and
    a resident one; decoding and reading beside the stock model's; and what this machine could do."""
    from actqkv_cli.commands import bench as command

    command.speed(_filled(command.Speed, locals()), _settings(locals()))


@bench.command("decode")
def bench_decode(
    synthetic_model: Annotated[str, typer.Option(help="A model's shape, as in `bench speed`.")] = "smollm2-135m",
    tokens: Annotated[str, typer.Option(help="Lengths of documents, by commas.")] = "8000,128000,1000000",
    policies: Annotated[str, typer.Option(help="By commas.")] = "hybrid,actqkv,actqkv:every16,streaming",
    budget: Annotated[int | None, typer.Option(help="Tokens. [default: each policy's]")] = None,
    rounds: Rounds = 3,
    max_tokens: Annotated[int, typer.Option(help="Of an answer.", min=1)] = 32,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """What a decoding step takes, beside reading the weights, over random documents of any length."""
    from actqkv_cli.commands import bench as command

    command.decode(synthetic_model, tokens, policies.split(","), rounds, max_tokens, _settings(locals()), as_json)


@bench.command("ingest")
def bench_ingest(
    path: Document,
    rounds: Rounds = 3,
    model: Model = None,
    budget: ReadingBudget = None,
    window: Window = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Tokens per second of reading, beside the stock model's over the same windows without history."""
    from actqkv_cli.commands import bench as command

    command.ingest(path, rounds, _settings(locals()), as_json)


def _settings(options: Mapping[str, Any]) -> "Settings":
    """The settings in force: every option of a command that is named as one of them sets it."""
    from actqkv_cli.config import Settings, load_settings

    return load_settings(**{name: value for name, value in options.items() if name in Settings.model_fields})


def _filled(kind: type[Record], options: Mapping[str, Any]) -> Record:
    """A dataclass from the options of a command that are named as its fields."""
    return kind(**{field.name: options[field.name] for field in fields(kind)})  # type: ignore[arg-type]
