"""The record of `bench speed` as a table of text and as a picture."""

import statistics
from collections.abc import Iterable, Sequence
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING

from actqkv_cli.bench.pictures import COLOURS, new_figure, write
from actqkv_cli.bench.report import NONE, aligned
from actqkv_cli.bench.speed import FULL, STOCK, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STAGES = ("import", "load", "index", "retrieve")


def table(record: Record) -> str:
    """What was measured, medians with least and most, in lines that no terminal cuts; what was left out, and why."""
    machine, document, model = record["machine"], record["document"], record["model"]
    rounds = record["rounds"]
    lines = [
        f"{document['name']}, {document['tokens']:,} tokens, {document['bytes'] / 1e6:,.0f} MB of cache; "
        f"{Path(model['name']).name}, {model['parameters'] / 1e9:.2f} billion parameters, {machine['dtype']}",
        f"{machine['device']}, {machine['processor']}, {_count(machine['threads'], 'thread')}, torch "
        f"{machine['versions']['torch']}, transformers {machine['versions']['transformers']}, commit "
        f"{machine['commit'] or 'unknown'}",
        f"median of {_count(rounds, 'round')} (least to most)",
        "",
        *aligned(_asks(record), words=3),
        "",
        *aligned(_rates(record)),
        "",
        *_floors(record),
        *(f"not measured: {reason}" for reason in record["left_out"]),
    ]
    if record["beyond_window"]:
        lines.append(
            f"the document is longer than the model's own window of {model['shape']['window']:,} tokens: stock "
            "re-reading and full attention are timed, but do not answer well"
        )
    return "\n".join(line.rstrip() for line in lines) + "\n"


def draw(record: Record, path: Path) -> None:
    """Time to the first token of every way of asking, and tokens per second of decoding and of reading.

    Raises UsageError where `pictures.write` does.
    """
    write(path, lambda: _figure(record))


def _groups(record: Record) -> dict[tuple[str, str, str], list[Record]]:
    """The rounds of each process, state and method, alike ones together."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for row in record["asks"]:
        groups.setdefault((row["process"], row["state"], row["method"]), []).append(row)
    return {key: groups[key] for key in sorted(groups, key=lambda key: (key[:2], _place(key[2])))}


def _place(method: str) -> int:
    return [STOCK, FULL, method].index(method)


def _label(method: str) -> str:
    return {STOCK: "stock, re-reading", FULL: "whole cache"}.get(method, f"retrieval ({method})")


def _asks(record: Record) -> list[list[str]]:
    titles = ["process", "cache", "method", "first token s", *(f"{stage} s" for stage in _STAGES), "prefill s"]
    titles += ["tokens/s after", "MB asked for", "MB from disk", "peak MB", "device MB"]
    rows = []
    for (process, state, method), found in _groups(record).items():
        stages = [[row["timings"].get(stage) for row in found] for stage in _STAGES]
        rest = [row["timings"]["first_token"] - sum(row["timings"].get(stage, 0) for stage in _STAGES) for row in found]
        sizes = ("bytes_read", "from_disk", "peak_host_bytes", "peak_device_bytes")
        rows.append(
            [
                process,
                state,
                _label(method),
                _median((row["first"] for row in found), 2, spread=True),
                *(_median(values, 2) for values in [*stages, rest]),
                _median((row["tokens_per_second"] for row in found), 1, spread=True),
                *(_median((None if row[size] is None else row[size] / 1e6 for row in found), 0) for size in sizes),
            ]
        )
    known = [any(row[place] != NONE for row in rows) for place in range(len(titles))]
    return [list(compress(row, known)) for row in (titles, *rows)]


def _rates(record: Record) -> list[list[str]]:
    """Tokens per second of decoding and reading, each beside the stock model's."""
    decode, read, floor = record["decode"], record["read"], record["floors"]
    rows = [["tokens/s", "actqkv", "stock", "of it", "floor here"]]
    ours, theirs = (_median(decode[name], 1, spread=True) for name in ("tokens_per_second", "stock_tokens_per_second"))
    stock = f"stock: context of {decode['stock_context']:,}"
    what = f"decoding, {decode['budget']:,} attended ({decode['policy']}; {stock})"
    rows.append([what, ours, theirs, f"{decode['ratio']:.2f}", NONE])
    rate = _median(read["tokens_per_second"], 0, spread=True)
    what = f"reading {read['tokens']:,} tokens (stock: in windows of {read['window']}, no history)"
    windows = _median(read["stock_tokens_per_second"], 0, spread=True)
    rows.append([what, rate, windows, f"{read['ratio']:.2f}", f"{floor['read_tokens_per_second']:,.0f}"])
    full = read["stock_full_tokens_per_second"]
    ratio = statistics.median(ours / stock for ours, stock in zip(read["tokens_per_second"], full, strict=True))
    what, whole = f"reading {read['tokens']:,} tokens (stock: with full attention)", _median(full, 0, spread=True)
    rows.append([what, rate, whole, f"{ratio:.2f}", f"{floor['stock_full_tokens_per_second']:,.0f}"])
    return rows


def _floors(record: Record) -> list[str]:
    compute, disk, floor = record["rates"]["compute"], record["rates"]["disk"], record["floors"]
    cold = f"{disk['cold'] / 1e9:.2f}" if disk["cold"] else "unknown"
    reload = f"{floor['reload_seconds']:.2f} s" if floor["reload_seconds"] else "unknown"
    return [
        f"this machine: products {compute['product'] / 1e9:,.0f} GFLOP/s, causal attention "
        f"{compute['attention'] / 1e9:,.0f} GFLOP/s, memory {compute['memory'] / 1e9:,.1f} GB/s, disk read cold "
        f"{cold} GB/s ({disk['dropped'] or 'cannot be emptied'}), warm {disk['warm'] / 1e9:.2f}, "
        f"written {disk['write'] / 1e9:.2f}",
        f"computed from these, not measured: re-reading the document takes {floor['reread_seconds']:.1f} s at least, "
        f"loading its whole cache {reload}",
    ]


def _figure(record: Record) -> "Figure":
    groups = _groups(record)
    figure = new_figure(6.4, 1.4 + 0.24 * len(groups) + 1.3)
    above, below = figure.subplots(2, 1, height_ratios=[max(3, len(groups)), 4])
    bars = []
    for (process, state, method), found in groups.items():
        if firsts := [row["first"] for row in found if row["first"] is not None]:
            bars.append((f"{process}, {state}: {_label(method)}", firsts, COLOURS[_place(method)]))
    _bars(above, bars, "{:.2f}")
    above.set_title(f"seconds to the first token, {record['document']['tokens']:,} tokens")
    decode, read = record["decode"], record["read"]
    ours, theirs = COLOURS[2], COLOURS[0]
    rates = [
        ("decoding, actqkv", decode["tokens_per_second"], ours),
        ("decoding, stock", decode["stock_tokens_per_second"], theirs),
        ("reading, actqkv", read["tokens_per_second"], ours),
        ("reading, stock in windows", read["stock_tokens_per_second"], theirs),
        ("reading, stock as a whole", read["stock_full_tokens_per_second"], theirs),
    ]
    _bars(below, rates, "{:,.1f}")
    below.set_title("tokens per second")
    return figure


def _bars(axes: "Axes", bars: Sequence[tuple[str, Sequence[float], str]], form: str) -> None:
    """Medians, their least and most as whiskers; a logarithmic scale, for they differ a hundredfold."""
    middles = [statistics.median(values) for _, values, _ in bars]
    below = [middle - min(values) for middle, (_, values, _) in zip(middles, bars, strict=True)]
    above = [max(values) - middle for middle, (_, values, _) in zip(middles, bars, strict=True)]
    places = range(len(bars))
    axes.barh(places, middles, color=[colour for _, _, colour in bars], height=0.65)
    axes.errorbar(middles, places, xerr=[below, above], fmt="none", ecolor="black", elinewidth=0.8, capsize=2)
    for place, middle, most in zip(places, middles, above, strict=True):
        axes.annotate(form.format(middle), (middle + most, place), (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(places, [name for name, _, _ in bars])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(min(middles) / 2, max(map(sum, zip(middles, above, strict=True))) * 2.5)
    axes.invert_yaxis()
    axes.grid(axis="x")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _median(values: Iterable[float | None], decimals: int, spread: bool = False) -> str:
    """Of those that are known; spread: with the least and the greatest of several."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return NONE
    median, low, high = (f"{value:,.{decimals}f}" for value in (statistics.median(known), known[0], known[-1]))
    return f"{median} ({low} to {high})" if spread and len(known) > 1 else median
