"""How fast questions are answered: stock re-reading, the whole cache, and retrieval, side by side in one run.

Whatever is timed is a process of its own, started as a user starts it. The rounds go through all methods in turn, so
that what else the machine does falls on all of them alike.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actqkv_cli.bench.machine import Compute, drop_cached, fill_cached
from actqkv_cli.bench.speed_inside import Spec
from actqkv_cli.bench.speed_process import Watched, actqkv, device_memory, watch
from actqkv_cli.errors import ActqkvError
from actqkv_cli.model.shape import Shape, causal_pairs, windowed_pairs
from actqkv_cli.progress import Progress
from actqkv_cli.store.library import Entry
from actqkv_cli.store.reader import DocumentReader

STOCK, FULL = "stock", "full"
FRESH, RESIDENT = "fresh", "resident"
COLD, WARM = "cold", "warm"
_QUOTED_WORDS = 6  # of the document, in a question

Record = dict[str, Any]  # as it becomes JSON


@dataclass(frozen=True)
class Measurement:
    """What is measured. model: its folder; stock_tokens: of the longest document that the stock model re-reads;
    full_tokens: of the document's part that is read anew; max_tokens: of an answer; budget: of decoding."""

    entry: Entry
    home: Path
    model: Path
    device: Any
    policy: str
    rounds: int
    stock_tokens: int
    full_tokens: int
    max_tokens: int
    budget: int


def questions(text: str, number: int) -> list[str]:
    """Each about other words of the document, evenly spread through it."""
    words = text.split()
    starts = [int((place + 0.5) / number * len(words)) for place in range(number)]
    return [f"What is said about “{' '.join(words[start : start + _QUOTED_WORDS])}”?" for start in starts]


def read_into(home: Path, file: Path, model: Path, device: Any, dtype: str, budget: int) -> Record:
    """Ingest a file into the library `home`, as a user does: what the command reports of it, with wall and peaks.

    Raises ActqkvError with the command's own message if it fails.
    """
    words = [str(file), "--home", str(home), "--model", str(model), "--device", str(device), "--dtype", dtype]
    words += ["--budget", str(budget), "--offline", "--quiet", "--json"]
    words += ["--keep-alive", "0"]  # so that the process that is watched is the one that reads
    seen = watch(actqkv("ingest", *words), os.environ, device_memory(device))
    return {**seen.result["documents"][0], **seen.figures()}


def measure(wanted: Measurement, progress: Progress) -> Record:
    """The record of a run: machine, document, every single ask, decoding, reading, floors, and what was left out.

    Raises ActqkvError with the message of a command that failed; what only the stock model cannot do is left out.
    """
    manifest = wanted.entry.manifest
    assert manifest is not None  # `find` returns whole documents
    with DocumentReader(wanted.entry.folder) as reader:
        # One to start the worker with; then each state of each round has its own, the same for every method.
        asked = questions(reader.text(), 2 * wanted.rounds + 1)
    job = Spec(
        model=str(wanted.model), document=str(wanted.entry.folder), dtype=manifest.geometry.dtype,
        device=str(wanted.device), question=asked[0], policy=wanted.policy, max_tokens=wanted.max_tokens,
        budget=wanted.budget, rounds=wanted.rounds, full_tokens=min(wanted.full_tokens, manifest.tokens),
    )  # fmt: skip
    left_out: list[str] = []
    asks: list[Record] = []
    parts = wanted.rounds + 2
    progress("measuring/parts", 0, parts)
    with _worker(wanted, asked[0], left_out) as worker:
        for number in range(wanted.rounds):
            pair = asked[1 + 2 * number : 3 + 2 * number]
            for state, question in zip((COLD, WARM), pair, strict=True):
                for method, process, figures in _ask_every_way(wanted, job, state, question, worker, left_out):
                    asks.append({"method": method, "process": process, "state": state, "round": number, **figures})
            progress("measuring/parts", number + 1, parts)
    decode = watch(job.command("decode"), os.environ).result
    progress("measuring/parts", parts - 1, parts)
    inside = watch(job.command("read"), os.environ).result
    progress("measuring/parts", parts, parts)
    shape, cache = Shape(**inside["shape"]), sum(segment.bytes for segment in manifest.segments)
    return {
        "machine": inside["machine"],
        "rates": {"compute": inside["compute"], "disk": inside["disk"]},
        "model": {**manifest.model, "shape": inside["shape"], "parameters": shape.parameters},
        "document": {"id": manifest.id, "name": manifest.source.name, "tokens": manifest.tokens, "bytes": cache},
        "rounds": wanted.rounds,
        "asks": asks,
        "decode": {key: value for key, value in decode.items() if key != "type"},
        "read": inside["read"],
        "floors": floors(shape, inside["compute"], inside["disk"], manifest.tokens, cache, inside["read"]),
        "beyond_window": manifest.tokens > shape.window,
        "left_out": list(dict.fromkeys(left_out)),
    }


def floors(
    shape: Shape, compute: Record, disk: Record, tokens: int, cache: int, read: Record
) -> dict[str, float | None]:
    """What the machine's own rates allow at best, in seconds: to re-read all `tokens`, to load the `cache` bytes; and
    in tokens/s: to read in windows with history and as a whole. See `Compute.floor`."""
    rates, part = Compute(**compute), read["tokens"]
    kept = cache / tokens * part / disk["write"]
    windowed = max(rates.floor(shape, part, windowed_pairs(part, read["window"], read["budget"])), kept)
    return {
        "reread_seconds": rates.floor(shape, tokens, causal_pairs(tokens)),
        "reload_seconds": cache / disk["cold"] if disk["cold"] else None,
        "read_tokens_per_second": part / windowed,
        "stock_tokens_per_second": part / rates.floor(shape, part, windowed_pairs(part, read["window"], 0)),
        "stock_full_tokens_per_second": part / rates.floor(shape, part, causal_pairs(part)),
    }


@dataclass
class _Worker:
    """env: in which `ask` goes to it; pid: 0 where there is none."""

    env: dict[str, str]
    pid: int = 0

    def changed(self) -> bool:
        """Whether it is another one than at the last call, or none."""
        status = watch(actqkv("worker", "status", "--json"), self.env).result
        before, self.pid = self.pid, status["pid"] if status["running"] else 0
        return self.pid != before


def _ask_every_way(
    wanted: Measurement, job: Spec, state: str, question: str, worker: _Worker, left_out: list[str]
) -> Iterator[tuple[str, str, Record]]:
    """One question to every method, with the page cache in that state: (method, process, figures) of each."""
    if not _prepare(state, _files(wanted.entry.folder)):
        left_out.append("cold: this system does not let go of cached files")
        return
    yield from _ask_stock(wanted, replace(job, question=question, again=state == WARM), state, left_out)
    used, fresh_env = device_memory(wanted.device), {**os.environ, "ACTQKV_KEEP_ALIVE": "0"}
    for policy in dict.fromkeys((FULL, wanted.policy)):
        command = _ask_command(wanted, policy, question)
        how = _prepare(state, [*_files(wanted.entry.folder), *_files(wanted.model)])
        yield policy, FRESH, {"cache": how, **_figures(watch(command, fresh_env, used))}
        while worker.pid:
            how = _prepare(state, _files(wanted.entry.folder))
            figures = _figures(watch(command, worker.env, used, worker.pid))
            if not worker.changed():  # one that is replaced has loaded everything anew
                yield policy, RESIDENT, {"cache": how, **figures}
                break


def _ask_stock(wanted: Measurement, job: Spec, state: str, left_out: list[str]) -> Iterator[tuple[str, str, Record]]:
    tokens = wanted.entry.manifest.tokens if wanted.entry.manifest else 0
    if tokens > wanted.stock_tokens:
        left_out.append(f"stock: {tokens:,} tokens are more than --stock-tokens {wanted.stock_tokens:,}")
        return
    how = _prepare(state, _files(wanted.model))
    try:
        seen = watch(job.command("stock"), os.environ, device_memory(wanted.device))
    except ActqkvError as error:
        left_out.append(f"stock: {error.message}")
        return
    for process, run in zip((FRESH, RESIDENT), seen.result["runs"], strict=False):
        timings = run["timings"]
        first = seen.first if process == FRESH and seen.first else timings["first_token"]
        wall = first + timings["total"] - timings["first_token"]
        yield STOCK, process, {"cache": how, **run, "bytes_read": 0, **seen.figures(), "first": first, "wall": wall}


def _prepare(state: str, files: list[Path]) -> str:
    """Take files out of the page cache, or into it. Returns how, "" if it cannot be done."""
    if state == COLD:
        return drop_cached(files)
    fill_cached(files)
    return "filled"


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()]


def _ask_command(wanted: Measurement, policy: str, question: str) -> list[str]:
    words = ["--doc", wanted.entry.id, "--home", str(wanted.home), "--policy", policy, "--device", str(wanted.device)]
    # By its folder: what a document remembers of its model may be a name that would be looked up on the network.
    words += ["--max-tokens", str(wanted.max_tokens), "--model", str(wanted.model), "--offline", "--jsonl"]
    return actqkv("ask", *words, question)


def _figures(seen: Watched) -> Record:
    """Of one `ask`."""
    timings, usage = seen.result["timings"], seen.result["usage"]
    after = timings["total"] - timings["first_token"]
    return {
        "timings": timings,
        "answer_tokens": usage["answer_tokens"],
        "tokens_per_second": (usage["answer_tokens"] - 1) / after if usage["answer_tokens"] > 1 else None,
        "bytes_read": sum(usage["bytes_read"].values()),
        **seen.figures(),
    }


@contextlib.contextmanager
def _worker(wanted: Measurement, question: str, left_out: list[str]) -> Iterator[_Worker]:
    """A resident worker of our own, warmed with one question and stopped at the end. The user's is left alone."""
    with tempfile.TemporaryDirectory(prefix="actqkv-") as runtime:
        worker = _Worker({**os.environ, "XDG_RUNTIME_DIR": runtime, "ACTQKV_KEEP_ALIVE": "1h"})
        try:
            watch(_ask_command(wanted, wanted.policy, question), worker.env)
            if not worker.changed():
                left_out.append("resident: there is no worker on this system")
            yield worker
        finally:
            watch(actqkv("worker", "stop"), worker.env)
