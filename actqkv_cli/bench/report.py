"""What was measured, as a table of text, as Markdown and as JSON."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from actqkv_cli.bench.paired import LEVEL, Difference, Estimate, Setting, Summary

NONE = "-"


@dataclass(frozen=True)
class _Column:
    """title: {} stands for the labels; metrics: metric -> label, those that occur are joined in one cell; times,
    decimals: how a value is written; interval: whether its half width stands beside it."""

    title: str
    metrics: Mapping[str, str]
    times: float = 1.0
    decimals: int = 0
    interval: bool = False
    between: str = "/"

    def titled(self, metrics: Iterable[str]) -> str:
        return self.title.format("/".join(self.metrics[metric] for metric in metrics))

    def text(self, estimate: Estimate | None, sign: str = "") -> str:
        """sign: "+" to write it always."""
        if estimate is None:
            return NONE
        text = f"{estimate.mean * self.times:{sign}z.{self.decimals}f}"
        if not self.interval or estimate.low is None or estimate.high is None:
            return text
        half = max(estimate.high - estimate.mean, estimate.mean - estimate.low)
        return f"{text} ±{half * self.times:.{self.decimals}f}"


_COLUMNS = (
    _Column("nll", {"nll": ""}, decimals=2, interval=True),
    _Column("agreement %", {"agreement": ""}, times=100, interval=True),
    _Column("divergence", {"divergence": ""}, decimals=3, interval=True),
    _Column("score %", {"score": ""}, times=100, interval=True),
    _Column("contains %", {"contains": ""}, times=100),
    _Column("F1 %", {"f1": ""}, times=100, interval=True),
    _Column("declined %", {"declined": ""}, times=100),
    _Column("Brier", {"brier": ""}, decimals=3),
    _Column("unanswerable declined %", {"declined_rightly": ""}, times=100, interval=True),
    _Column("recall {} %", {"recall1": "1", "recall3": "3", "recall5": "5"}, times=100),
    _Column("page {} %", {"page1": "1", "page3": "3"}, times=100),
    _Column("blocks", {"least_blocks": "", "most_blocks": ""}, between=" to "),
    _Column("attended", {"attended": ""}),
    _Column("entropy", {"entropy": ""}, decimals=3),
    _Column("MB resident", {"bytes": ""}, times=1e-6, decimals=1),
)


def table(summaries: Sequence[Summary], differences: Sequence[Difference] = ()) -> str:
    """Lines of equal width, whatever the terminal's; a setting a line, in the order given, with a column for each
    metric that occurs and for each paired difference. A half width is that of the interval's wider side."""
    return "".join(line + "\n" for line in aligned(_cells(summaries, differences)))


def aligned(rows: Sequence[Sequence[str]], words: int = 1) -> list[str]:
    """A line for each row, all equally long: the first `words` columns begin at one place, the others end at one."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def markdown(summaries: Sequence[Summary], differences: Sequence[Difference] = ()) -> str:
    """The same table for a README."""
    head, *body = [[cell.replace("|", r"\|") for cell in row] for row in _cells(summaries, differences)]
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "".join("| " + " | ".join(row) + " |\n" for row in (head, rule, *body))


def as_json(summaries: Sequence[Summary], differences: Sequence[Difference] = ()) -> dict[str, Any]:
    """Everything in full, plain numbers; null for an interval that is not known and a mean that is not finite."""
    return {
        "interval": {"level": LEVEL, "method": "percentile bootstrap, resampled by question"},
        "settings": [
            {**vars(summary), "metrics": {metric: _numbers(estimate) for metric, estimate in summary.metrics.items()}}
            for summary in summaries
        ],
        "differences": [
            {
                "policy": difference.policy,
                "budget": difference.budget,
                "metric": difference.metric,
                "against": {"policy": difference.against[0], "budget": difference.against[1]},
                **_numbers(difference.estimate),
            }
            for difference in differences
        ],
    }


def _numbers(estimate: Estimate) -> dict[str, Any]:
    return asdict(estimate) if math.isfinite(estimate.mean) else {**asdict(estimate), "mean": None}


def _cells(summaries: Sequence[Summary], differences: Sequence[Difference]) -> list[list[str]]:
    """The titles, then a row for each summary."""
    occur = {metric for summary in summaries for metric in summary.metrics}
    titles = ["policy", "budget", "n"]
    rows = [[summary.policy, str(summary.budget or NONE), str(summary.questions)] for summary in summaries]
    for column in _COLUMNS:
        metrics = [metric for metric in column.metrics if metric in occur]
        if not metrics:
            continue
        titles.append(column.titled(metrics))
        for row, summary in zip(rows, summaries, strict=True):
            found = [summary.metrics.get(metric) for metric in metrics]
            row.append(column.between.join(map(column.text, found)) if any(found) else NONE)
    estimates: dict[tuple[str, Setting], dict[Setting, Estimate]] = {}
    for difference in differences:
        of = estimates.setdefault((difference.metric, difference.against), {})
        of[difference.policy, difference.budget] = difference.estimate
    for (metric, (policy, budget)), of in estimates.items():
        column = replace(_column(metric), interval=True)
        titles.append(f"{column.titled([metric])} vs {policy}{f' {budget}' if budget else ''}")
        for row, summary in zip(rows, summaries, strict=True):
            row.append(column.text(of.get((summary.policy, summary.budget)), sign="+"))
    return [titles, *rows]


def _column(metric: str) -> _Column:
    """Of one metric; one that the table does not know is written plainly."""
    known = (column for column in _COLUMNS if metric in column.metrics)
    return next(known, _Column(metric, {metric: ""}, decimals=3))
