"""What was measured, drawn: quality against the budget, or needles by length and depth."""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from actqkv_cli.bench.paired import Estimate, Measured, Setting, summaries
from actqkv_cli.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SUFFIXES = (".png", ".svg")
_FULL = "full"

# Paul Tol's "muted" palette, safe for the colour-blind, neighbours far apart; with seven markers 63 policies differ
COLOURS = ("#332288", "#cc6677", "#117733", "#88ccee", "#882255", "#999933", "#44aa99", "#aa4499", "#ddcc77")
_MARKERS = "osD^vPX"
_APART = 0.035  # octaves between the intervals of two policies at one budget
_SAME_LENGTH = 0.02  # share: neighbours in length that differ by less were meant to be of one length
_MAX_TICKS = 6
_MAX_COLUMNS = 4

_STYLE = {
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "svg.hashsalt": "actqkv",  # the same rows give the same file
}


@dataclass(frozen=True)
class _Metric:
    name: str
    label: str
    times: float
    better: str


_NLL = _Metric("nll", "nats per gold token", 1, "lower")
_SCORE = _Metric("score", "score, %", 100, "higher")
_RECALL = _Metric("recall3", "gold block among the first three, %", 100, "higher")


def check(path: Path) -> None:
    """Raises UsageError if `draw` could not write there, or draw at all: to be called before long measurements."""
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"cannot draw to {path}: its suffix names no known format", "name a .png or .svg file")
    if not path.parent.is_dir():
        raise UsageError(f"cannot draw to {path}: {path.parent} is no folder")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("drawing needs matplotlib", 'pip install "actqkv[bench]"') from None


def draw(rows: Sequence[Measured], path: Path) -> None:
    """A PNG or SVG, by the suffix.

    Where every row has a depth: a heat map of length by depth for each policy at each budget, of the score (else
    recall among three, else nll). Otherwise nll (else score, else recall among three) against the budget, a line a
    policy with its 95 % intervals; `full` and what has no budget as level lines.
    Raises UsageError on an unknown suffix, nothing to draw, no matplotlib, a path that cannot be written.
    """
    needles = bool(rows) and all(row.depth is not None for row in rows)
    metric = _first(rows, (_SCORE, _RECALL, _NLL) if needles else (_NLL, _SCORE, _RECALL))
    if metric is None:
        raise UsageError("there is nothing to draw", f"needed: {_NLL.name}, {_SCORE.name} or {_RECALL.name}")
    write(path, lambda: _heat_maps(rows, metric) if needles else _lines(rows, metric))


def write(path: Path, make: "Callable[[], Figure]") -> None:
    """Make a figure in the style of all our pictures, and write it. Raises UsageError as `draw` does."""
    check(path)
    import matplotlib.style

    with matplotlib.style.context(["default", _STYLE]):  # whatever the user's own defaults
        figure = make()
        try:
            figure.savefig(path, dpi=200, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from None


def _first(rows: Iterable[Measured], metrics: Iterable[_Metric]) -> _Metric | None:
    """The first of which any setting has a finite mean."""
    sums: dict[tuple[str, int, str], float] = defaultdict(float)
    for row in rows:
        for name, value in row.values.items():
            sums[row.policy, row.budget, name] += value
    found = {name for (_, _, name), total in sums.items() if math.isfinite(total)}
    return next((metric for metric in metrics if metric.name in found), None)


def new_figure(width: float, height: float) -> "Figure":
    """Inches. No pyplot: nothing outlives the call."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _lines(rows: Sequence[Measured], metric: _Metric) -> "Figure":
    levels: dict[str, dict[int, Estimate]] = {}
    curves: dict[str, dict[int, Estimate]] = {}
    known = [replace(row, values={metric.name: row.values[metric.name]}) for row in rows if metric.name in row.values]
    for summary in summaries(known):
        estimate = summary.metrics[metric.name]
        if not math.isfinite(estimate.mean):
            continue
        if summary.policy == _FULL or summary.budget <= 0:
            levels.setdefault(summary.policy, {0: estimate})
        else:
            curves.setdefault(summary.policy, {})[summary.budget] = estimate

    figure = new_figure(5.6, 3.4)
    axes = figure.subplots()
    for place, (policy, estimates) in enumerate(curves.items()):
        shift = 2 ** (_APART * (place - (len(curves) - 1) / 2))
        _line(axes, policy, dict(sorted(estimates.items())), shift, place, metric.times)
    for policy, estimates in levels.items():
        grey = "black" if policy == _FULL else "#767676"
        axes.axhline(estimates[0].mean * metric.times, color=grey, linestyle="--", linewidth=1.1, label=policy)

    budgets = sorted({budget for estimates in curves.values() for budget in estimates})
    axes.set_xscale("log", base=2)
    axes.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
    axes.minorticks_off()
    if budgets:
        axes.set_xlim(budgets[0] / 2**0.4, budgets[-1] * 2**0.4)
    axes.set_xlabel("tokens attended per layer")
    axes.set_ylabel(f"{metric.label} ({metric.better} is better)")
    axes.grid(axis="y")
    drawn = [*curves.items(), *levels.items()]
    counts = {estimate.n for _, estimates in drawn for estimate in estimates.values()}
    low, high = min(counts), max(counts)
    asked = f"{high:,}" if low == high else f"{low:,} to {high:,}"
    axes.set_title(f"{asked} question{'' if high == 1 else 's'}, 95 % intervals")
    last = {policy: estimates[max(estimates)].mean for policy, estimates in drawn}
    handles, labels = axes.get_legend_handles_labels()
    shown = sorted(zip(handles, labels, strict=True), key=lambda pair: -last[pair[1]])  # as the lines end, from the top
    figure.legend(*zip(*shown, strict=True), loc="outside right upper")
    return figure


def _line(axes: "Axes", policy: str, estimates: dict[int, Estimate], shift: float, place: int, times: float) -> None:
    means = [e.mean * times for e in estimates.values()]
    below = [0.0 if e.low is None else (e.mean - e.low) * times for e in estimates.values()]
    above = [0.0 if e.high is None else (e.high - e.mean) * times for e in estimates.values()]
    at = [budget * shift for budget in estimates]
    colour = COLOURS[place % len(COLOURS)]
    axes.errorbar(at, means, yerr=[below, above], fmt="none", ecolor=colour, elinewidth=0.9)
    axes.plot(at, means, color=colour, marker=_MARKERS[place % len(_MARKERS)], label=policy)


def _heat_maps(rows: Sequence[Measured], metric: _Metric) -> "Figure":
    import matplotlib

    lengths = _lengths({row.tokens for row in rows})
    across = sorted(set(lengths.values()))
    down = sorted({_percent(row) for row in rows})
    values: dict[Setting, dict[tuple[int, int], list[float]]] = {}
    for row in rows:
        cells = values.setdefault((row.policy, row.budget), {})
        if metric.name in row.values:
            cells.setdefault((lengths[row.tokens], _percent(row)), []).append(row.values[metric.name] * metric.times)
    grids = {
        setting: np.array(
            [[statistics.fmean(cells.get((length, depth), [math.nan])) for length in across] for depth in down]
        )
        for setting, cells in values.items()
    }

    policies, budgets = (list(dict.fromkeys(setting[i] for setting in grids)) for i in (0, 1))
    columns = len(budgets) if len(budgets) > 1 else min(_MAX_COLUMNS, len(policies))
    order = [(policy, budget) for policy in policies for budget in budgets]
    lines = math.ceil(len(order) / columns)
    figure = new_figure(1.4 + 1.9 * columns, 0.7 + 1.5 * lines)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    colours = matplotlib.colormaps["viridis" if metric.better == "higher" else "viridis_r"]  # bright is better
    known = np.concatenate([grid[np.isfinite(grid)] for grid in grids.values()])
    low, high = (float(known.min()), float(known.max())) if metric.times == 1 else (0.0, metric.times)
    for panel, setting in zip_longest(panels.flat, order):
        if setting not in grids:
            panel.set_axis_off()
            continue
        panel.set_facecolor("#f0f0f0")  # not measured
        grid = np.ma.masked_invalid(grids[setting])
        image = panel.pcolormesh(grid, cmap=colours, vmin=low, vmax=high, edgecolor="white", linewidth=0.4)
        panel.set_title(f"{setting[0]} at {setting[1]:,}" if setting[1] > 0 else setting[0])
        panel.set_xticks(*_ticks([_thousands(length) for length in across]))
        panel.set_yticks(*_ticks([str(depth) for depth in down]))
        panel.tick_params(length=0, labelsize=7.5)
        panel.spines[:].set_visible(False)
    panels[0, 0].invert_yaxis()  # the document's beginning on top; the panels share the axis
    figure.supxlabel("document, tokens", fontsize="medium")
    figure.supylabel("depth of the needle, %", fontsize="medium")
    figure.colorbar(image, ax=panels, label=metric.label, aspect=30).outline.set_visible(False)
    return figure


def _lengths(tokens: Iterable[int]) -> dict[int, int]:
    """Each length with the greatest of its group; a group ends where the next length is far below."""
    result: dict[int, int] = {}
    greatest = before = 0
    for length in sorted(tokens, reverse=True):
        if length < before * (1 - _SAME_LENGTH) or not result:
            greatest = length
        result[length] = greatest
        before = length
    return result


def _percent(row: Measured) -> int:
    """The depth, in whole percent: a needle cannot always stand exactly where it was meant to."""
    return round(100 * (row.depth or 0))


def _thousands(length: int) -> str:
    return f"{length / 1000:.1f}K" if length < 10_000 else f"{length / 1000:.0f}K"


def _ticks(labels: Sequence[str]) -> tuple[list[float], list[str]]:
    """Places amid the cells, and labels, not too many of them."""
    step = math.ceil(len(labels) / _MAX_TICKS)
    return [place + 0.5 for place in range(0, len(labels), step)], list(labels[::step])
