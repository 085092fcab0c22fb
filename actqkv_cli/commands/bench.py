"""actqkv bench: measurements, each beside what it is compared with."""

import contextlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from actqkv_cli.commands.ingest import reading_of
from actqkv_cli.commands.plan import synthetic_config
from actqkv_cli.config import BUDGET, Settings, load_settings
from actqkv_cli.documents import read_document
from actqkv_cli.errors import UsageError
from actqkv_cli.loading import locate
from actqkv_cli.output import note, print_json, progress
from actqkv_cli.store.library import Entry, find, scratch

if TYPE_CHECKING:
    import torch

    from actqkv_cli.bench.examples import Example
    from actqkv_cli.bench.paired import Setting
    from actqkv_cli.model.load import LoadedModel

NEEDLE = "needle"


def numbers(option: str, text: str) -> list[int]:
    """The numbers of an option that takes several, separated by commas. Raises UsageError."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} must be numbers separated by commas, not {text!r}") from None


@dataclass(frozen=True)
class Quality:
    """What `bench quality` is asked for. sources: files of questions or names of generators; policies, budgets, tokens:
    several, separated by commas; tokens: of a document, files' contexts are joined to it; questions: at most, of each
    source; unanswerable: whether those of other documents are asked too; together: whether each is put to all
    documents; out: a folder that keeps what was measured."""

    sources: list[str]
    policies: str
    budgets: str
    tokens: str | None
    questions: int | None
    depths: int
    seed: int
    haystack: Path | None
    doc: str | None
    generate: bool
    unanswerable: bool
    together: bool
    out: Path | None
    picture: Path | None
    markdown: bool
    as_json: bool


def quality(options: Quality, settings: Settings) -> None:
    """A row for each policy and budget over all questions, the paired differences, and a picture if one is wanted."""
    from actqkv_cli.bench import paired, pictures, report
    from actqkv_cli.bench.examples import unanswerable
    from actqkv_cli.bench.quality import REFERENCE
    from actqkv_cli.bench.run import measure_all
    from actqkv_cli.bench.yardsticks import GOLD, YARDSTICKS
    from actqkv_cli.model.load import load_model
    from actqkv_cli.retrieval.policies import check_policy

    policies, budgets = options.policies.split(","), numbers("--budgets", options.budgets)
    lengths = numbers("--tokens", options.tokens) if options.tokens else []
    for budget in budgets:
        load_settings(budget=budget)  # the same bounds as everywhere
    for policy in set(policies) - set(YARDSTICKS):
        check_policy(policy)
    if not options.generate and (options.unanswerable or set(policies) & set(YARDSTICKS)):
        raise UsageError("what is answered shows in answers only", "add --generate")
    if options.unanswerable and options.together:
        raise UsageError("put to all documents at once, no question is without its own", "leave out --together")
    if options.picture:
        pictures.check(options.picture)
    entry = find(settings.home, options.doc) if options.doc is not None else None
    known = entry.manifest.model if entry and entry.manifest and settings.model == "default" else {}
    spec, dtype = known.get("name", settings.model), known.get("dtype", settings.dtype)
    loaded = load_model(locate(spec, settings, quiet=options.as_json), dtype=dtype, device=settings.device)
    examples = _examples(options, lengths, loaded, entry)
    if GOLD in policies and any(example.document for example in examples):
        raise UsageError("these questions come without passages, so gold has nothing to read", "leave gold out")
    if options.unanswerable:
        examples += unanswerable(examples)
    without_budget = (REFERENCE, GOLD)
    plan: list[Setting] = [(policy, 0) for policy in without_budget if policy in policies]
    plan += [(policy, budget) for policy in policies if policy not in without_budget for budget in budgets]
    with contextlib.ExitStack() as stack:
        folder = options.out or stack.enter_context(scratch(settings.home))
        show = stack.enter_context(progress(quiet=options.as_json))
        how, generate = reading_of(settings), options.generate
        rows = measure_all(
            loaded, examples, plan, how, generate, settings.home, settings.cache, folder, options.together, show
        )
    summaries = paired.summaries(rows)
    differences = paired.differences(rows, "score" if generate else "nll", plan[0]) if len(plan) > 1 else []
    if options.picture:
        pictures.draw(rows, options.picture)
        note(f"drew {options.picture}")
    if options.as_json:
        print_json(
            {"questions": len(examples), "model": loaded.files.identity, **report.as_json(summaries, differences)}
        )
    elif options.markdown:
        sys.stdout.write(report.markdown(summaries, differences))
    else:
        sys.stdout.write(report.table(summaries, differences))


def _examples(options: Quality, lengths: list[int], loaded: "LoadedModel", entry: Entry | None) -> "list[Example]":
    """The questions of all sources. lengths: of their documents in tokens; without any, each source's own default."""
    from actqkv_cli.bench.examples import joined
    from actqkv_cli.bench.formats import read_examples
    from actqkv_cli.bench.generators import GENERATORS, generate, needle_grid

    def count(text: str) -> int:
        return len(loaded.tokenizer.encode(text))

    haystack = read_document(options.haystack).text if options.haystack else None
    examples: list[Example] = []
    for source in options.sources:
        if source == NEEDLE:
            if haystack is None:
                raise UsageError("the needle needs a haystack", "give a document with --haystack")
            depths = [place / max(options.depths - 1, 1) for place in range(options.depths)]
            examples += needle_grid(haystack, lengths or [4000, 8000, 16000], depths, options.seed, count)
        elif source in GENERATORS:
            for tokens in lengths or [16000]:
                examples += generate(source, tokens, options.questions or 60, options.seed, count, haystack)
        else:
            found = read_examples(Path(source))
            if entry is not None:
                found = [replace(e, document=entry.id) for e in found if e.document == entry.name]
            found = found[: options.questions]
            for tokens in lengths:
                examples += joined(found, tokens, count)
            examples += found if not lengths else []
    if not examples:
        raise UsageError("there are no questions to ask")
    return examples


@dataclass(frozen=True)
class Speed:
    """What `bench speed` is asked for: a document of the library, or a file, or neither: then a text of about `tokens`
    tokens. synthetic_model: the name of a shape. The rest: see `bench.speed.Measurement`."""

    file: Path | None
    doc: str | None
    tokens: int
    synthetic_model: str | None
    rounds: int
    stock_tokens: int
    full_tokens: int
    max_tokens: int
    picture: Path | None
    as_json: bool


def speed(options: Speed, settings: Settings) -> None:
    """Every way of asking, decoding and reading, side by side: a table or JSON, and a picture if one is wanted."""
    from actqkv_cli.bench import pictures, speed, speed_report
    from actqkv_cli.model.load import choose_device, choose_dtype
    from actqkv_cli.retrieval.policies import check_policy

    if options.doc is not None and (options.file or options.synthetic_model):
        raise UsageError("--doc is in the library already, read by its own model", "leave the file and the model out")
    check_policy(settings.policy)
    if options.picture:
        pictures.check(options.picture)
    if options.file:
        read_document(options.file)  # it can be read: better known before a model is fetched or made
    device, budget = choose_device(settings.device), settings.budget or BUDGET
    with contextlib.ExitStack() as stack:
        home, ingested = settings.home, None
        if options.doc is not None:
            entry = find(home, options.doc)
            spec = entry.manifest.model["name"] if entry.manifest and settings.model == "default" else settings.model
            model = locate(spec, settings, quiet=options.as_json).folder
        else:
            dtype = choose_dtype(settings.dtype, device)
            model = _model_folder(options, settings, dtype, device)
            home = stack.enter_context(scratch(settings.home))
            file = options.file or _prose(home / "prose.txt", model, options.tokens)
            note(f"reading {file.name} …")
            ingested = speed.read_into(home, file, model, device, dtype, budget)
            entry = find(home, ingested["id"])
        measurement = speed.Measurement(
            entry=entry, home=home, model=model, device=device, policy=settings.policy, rounds=options.rounds,
            stock_tokens=options.stock_tokens, full_tokens=options.full_tokens, max_tokens=options.max_tokens,
            budget=budget,
        )  # fmt: skip
        with progress(quiet=options.as_json) as show:
            record = {**speed.measure(measurement, show), "ingest": ingested}
    if options.picture:
        speed_report.draw(record, options.picture)
        note(f"drew {options.picture}")
    if options.as_json:
        print_json(record)
    else:
        sys.stdout.write(speed_report.table(record))


def _model_folder(options: Speed, settings: Settings, dtype: str, device: "torch.device") -> Path:
    from actqkv_cli.model.synthetic import TOKENIZER, synthetic_model

    synthetic_config(options.synthetic_model, settings)  # there is such a model, before anything is fetched
    if options.synthetic_model is None:
        return locate(settings.model, settings, quiet=options.as_json).folder
    folder = locate(TOKENIZER, settings, quiet=options.as_json).folder
    with progress(options.as_json, "bytes") as show:
        return synthetic_model(
            options.synthetic_model, folder, settings.cache / "models", dtype=dtype, device=device, progress=show
        )


def _prose(path: Path, model: Path, tokens: int) -> Path:
    """Write a text of about so many tokens."""
    from tokenizers import Tokenizer

    from actqkv_cli.bench.generators import generate

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    example = generate("facts", tokens, 1, 0, lambda text: len(tokenizer.encode(text, add_special_tokens=False)))[0]
    path.write_text(example.context, encoding="utf-8")
    return path


def decode(
    synthetic: str, tokens: str, policies: list[str], rounds: int, max_tokens: int, settings: Settings, as_json: bool
) -> None:
    """What a decoding step takes over documents of some lengths. tokens: these lengths, by commas."""
    from actqkv_cli.bench.decode import measure
    from actqkv_cli.model.config import parse_config
    from actqkv_cli.model.load import choose_device, choose_dtype
    from actqkv_cli.model.synthetic import config_of
    from actqkv_cli.retrieval.policies import check_policy

    lengths = numbers("--tokens", tokens)
    if min(lengths) < 1000:
        raise UsageError("--tokens must be 1000 or more")
    for policy in policies:
        check_policy(policy)
    device = choose_device(settings.device)
    config, dtype = parse_config(config_of(synthetic)), choose_dtype(settings.dtype, device)
    record = measure(config, lengths, policies, settings.budget, rounds, max_tokens, device, dtype)
    if as_json:
        print_json(record)
        return
    weights = 1e3 * record["weights"]["seconds"]
    sys.stdout.write(f"reading the weights of {synthetic} in {dtype} takes {weights:.2f} ms at the rate of a copy\n")
    sys.stdout.write(f"{'tokens':>9}  {'policy':<16}{'ms a token':>11}{'range':>18}{'x weights':>11}{'peak MB':>10}\n")
    for row in record["rows"]:
        low, high = (1e3 * bound for bound in row["range"])
        peak = "-" if row["peak_device_bytes"] is None else f"{row['peak_device_bytes'] / 1e6:,.0f}"
        sys.stdout.write(
            f"{row['document_tokens']:>9,}  {row['policy']:<16}{1e3 * row['seconds_per_token']:>11.2f}"
            f"{f'{low:.2f} to {high:.2f}':>18}{row['times_weights']:>11.2f}{peak:>10}\n"
        )


def ingest(path: Path, rounds: int, settings: Settings, as_json: bool) -> None:
    """Tokens per second of reading a document, beside the stock model's."""
    from actqkv_cli.bench.ingest import measure
    from actqkv_cli.engine.ingest import encode
    from actqkv_cli.model.load import load_model

    document = read_document(path)
    files = locate(settings.model, settings, quiet=as_json)
    loaded = load_model(files, dtype=settings.dtype, device=settings.device)
    ids, budget = encode(document, loaded.tokenizer).ids, settings.budget or BUDGET
    result = measure(loaded, ids, budget, settings.window, rounds, settings.home)
    if as_json:
        print_json(result)
    else:
        for key, value in result.items():
            sys.stdout.write(f"{key + ':':<25}{value}\n")
