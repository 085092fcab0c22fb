"""How fast questions are answered: stock re-reading, the whole cache, and retrieval, side by side in one run.

Whatever is timed is a process of its own, started as a user starts it. The rounds go through all methods in turn, so
that what else the machine does falls on all of them alike.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
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
_QUOTED = 6  # words of the document in a question


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

    @property
    def files(self) -> list[Path]:
        """The document's."""
        return [path for path in self.entry.folder.iterdir() if path.is_file()]


def questions(text: str, number: int) -> list[str]:
    """Each about other words of the document, evenly spread through it."""
    words = text.split()
    starts = [int((place + 0.5) / number * len(words)) for place in range(number)]
    return [f"What is said about “{' '.join(words[start : start + _QUOTED])}”?" for start in starts]


def read_into(home: Path, file: Path, model: Path, device: Any, dtype: str, budget: int) -> dict[str, Any]:
    """Ingest a file into the library `home`, as a user does: what the command tells of it, with wall and peaks.

    Raises ActqkvError with its words if it fails.
    """
    words = [str(file), "--home", str(home), "--model", str(model), "--device", str(device), "--dtype", dtype]
    words += ["--budget", str(budget), "--offline", "--quiet", "--json"]
    seen = watch(actqkv("ingest", *words), os.environ, device_memory(device))
    return {**seen.done["documents"][0], **_outside(seen)}


def measure(wanted: Measurement, progress: Progress) -> dict[str, Any]:
    """The record of a run: machine, document, every single ask, decoding, reading, floors, and what was left out.

    Raises ActqkvError with the words of a command that failed; what only the stock model cannot do is left out.
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
    used = device_memory(wanted.device)
    left_out: list[str] = []
    progress("measuring/parts", 0, wanted.rounds + 2)
    with _worker(wanted, asked[0], left_out) as worker:
        asks = []
        for number in range(wanted.rounds):
            asks += _round(wanted, job, number, asked[1 + 2 * number :], worker, used, left_out)
            progress("measuring/parts", number + 1, wanted.rounds + 2)
    decode = watch(job.command("decode"), os.environ, used).done
    progress("measuring/parts", wanted.rounds + 1, wanted.rounds + 2)
    inside = watch(job.command("read"), os.environ, used).done
    progress("measuring/parts", wanted.rounds + 2, wanted.rounds + 2)
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
        "left_out": sorted(set(left_out), key=left_out.index),
    }


def floors(
    shape: Shape,
    compute: Mapping[str, float],
    disk: Mapping[str, Any],
    tokens: int,
    cache: int,
    read: Mapping[str, Any],
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
        status = watch(actqkv("worker", "status", "--json"), self.env, lambda: 0).done
        before, self.pid = self.pid, status["pid"] if status["running"] else 0
        return self.pid != before


def _round(
    wanted: Measurement, job: Spec, number: int, asked: list[str], worker: _Worker,
    used: Callable[[], int], left_out: list[str],
) -> list[dict[str, Any]]:  # fmt: skip
    rows = []
    weights = [path for path in wanted.model.iterdir() if path.is_file()]
    fresh_env = {**os.environ, "ACTQKV_KEEP_ALIVE": "0"}
    for state, question in zip((COLD, WARM), asked, strict=False):

        def row(method: str, process: str, found: dict[str, Any], state: str = state) -> None:
            rows.append({"method": method, "process": process, "state": state, "round": number, **found})

        def prepare(files: list[Path], state: str = state) -> str:
            if state == COLD:
                return drop_cached(files)
            fill_cached(files)
            return "filled"

        if not prepare(wanted.files):
            left_out.append("cold: this system does not let go of cached files")
            continue
        stock, why = _stock(wanted, replace(job, question=question, again=state == WARM), prepare, weights, used)
        left_out += [why] if why else []
        for process, found in stock.items():
            row(STOCK, process, found)
        for policy in dict.fromkeys((FULL, wanted.policy)):
            command = _ask(wanted, policy, question)
            how = prepare([*wanted.files, *weights])
            row(policy, FRESH, {"cache": how, **_asked(watch(command, fresh_env, used))})
            while worker.pid:
                how = prepare(wanted.files)
                found = _asked(watch(command, worker.env, used, worker.pid))
                if not worker.changed():  # one that is replaced has loaded everything anew
                    row(policy, RESIDENT, {"cache": how, **found})
                    break
    return rows


def _stock(
    wanted: Measurement,
    job: Spec,
    prepare: Callable[[list[Path]], str],
    weights: list[Path],
    used: Callable[[], int],
) -> tuple[dict[str, dict[str, Any]], str]:
    """The stock model's figures, by process, or why there are none."""
    tokens = wanted.entry.manifest.tokens if wanted.entry.manifest else 0
    if tokens > wanted.stock_tokens:
        return {}, f"stock: {tokens:,} tokens are more than --stock-tokens {wanted.stock_tokens:,}"
    how = prepare(weights)
    try:
        seen = watch(job.command("stock"), os.environ, used)
    except ActqkvError as error:
        return {}, f"stock: {error.message}"
    found = {}
    for process, run in zip((FRESH, RESIDENT), seen.done["runs"], strict=False):
        timings = run["timings"]
        first = seen.first if process == FRESH and seen.first else timings["first_token"]
        wall = first + timings["total"] - timings["first_token"]
        found[process] = {"cache": how, **run, "bytes_read": 0, **_outside(seen), "first": first, "wall": wall}
    return found, ""


def _ask(wanted: Measurement, policy: str, question: str) -> list[str]:
    words = ["--doc", wanted.entry.id, "--home", str(wanted.home), "--policy", policy, "--device", str(wanted.device)]
    # By its folder: what a document remembers of its model may be a name that would be looked up on the network.
    words += ["--max-tokens", str(wanted.max_tokens), "--model", str(wanted.model), "--offline", "--jsonl"]
    return actqkv("ask", *words, question)


def _asked(seen: Watched) -> dict[str, Any]:
    timings, usage = seen.done["timings"], seen.done["usage"]
    after = timings["total"] - timings["first_token"]
    return {
        "timings": timings,
        "answer_tokens": usage["answer_tokens"],
        "tokens_per_second": (usage["answer_tokens"] - 1) / after if usage["answer_tokens"] > 1 else None,
        "bytes_read": sum(usage["bytes_read"].values()),
        **_outside(seen),
    }


def _outside(seen: Watched) -> dict[str, Any]:
    return {
        "first": seen.first,
        "wall": seen.wall,
        "from_disk": seen.from_disk,
        "peak_host_bytes": seen.peak_host,
        "peak_device_bytes": seen.peak_device,
    }


@contextlib.contextmanager
def _worker(wanted: Measurement, question: str, left_out: list[str]) -> Iterator[_Worker]:
    """A resident worker of our own, warmed with one question and stopped at the end. The user's is left alone."""
    with tempfile.TemporaryDirectory(prefix="actqkv-") as runtime:
        worker = _Worker({**os.environ, "XDG_RUNTIME_DIR": runtime, "ACTQKV_KEEP_ALIVE": "1h"})
        try:
            watch(_ask(wanted, wanted.policy, question), worker.env, lambda: 0)
            if not worker.changed():
                left_out.append("resident: there is no worker on this system")
            yield worker
        finally:
            watch(actqkv("worker", "stop"), worker.env, lambda: 0)
