"""Means over questions, each asked under every policy and budget, and the paired differences between settings.

Intervals are 95 % percentile bootstraps of the mean (Efron 1979), resampled by question. Questions of one document
share its text and are not independent: over few documents the intervals say how sure the figures are for these
documents, and are too narrow for documents in general.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actqkv_cli.errors import UsageError

LEVEL = 0.95
_RESAMPLES = 9999
_BATCH = 1000  # resamples held in memory at a time

Setting = tuple[str, int]  # policy, budget


@dataclass(frozen=True)
class Measured:
    """One question under one setting.

    example: the question's id; document: a short name of what it is asked of, tokens: its length; budget: tokens
    attended per layer, 0 for a policy that attends none (a lexical ranking); values: metric -> value, a metric may be
    missing; depth: where the needle stands, in [0, 1]; answer: what was decoded.
    """

    example: str
    task: str
    document: str
    tokens: int
    policy: str
    budget: int
    values: Mapping[str, float]
    depth: float | None = None
    answer: str = ""


@dataclass(frozen=True)
class Estimate:
    """The mean of n values and its interval; low and high are None where n is 1 or the mean is not finite."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Summary:
    """A setting over all its questions; a metric's n counts the questions that have it."""

    policy: str
    budget: int
    questions: int
    metrics: Mapping[str, Estimate]


@dataclass(frozen=True)
class Difference:
    """The mean over questions of a setting's metric minus the same question's under `against`."""

    policy: str
    budget: int
    metric: str
    against: Setting
    estimate: Estimate


def summaries(rows: Iterable[Measured]) -> list[Summary]:
    """One for each setting, in first-seen order. Raises UsageError where a setting has a question twice."""
    result = []
    for (policy, budget), questions in _settings(rows).items():
        columns: dict[str, list[float]] = {}
        for row in questions.values():
            for metric, value in row.values.items():
                columns.setdefault(metric, []).append(value)
        metrics = {metric: _estimate(column) for metric, column in columns.items()}
        result.append(Summary(policy, budget, len(questions), metrics))
    return result


def differences(rows: Iterable[Measured], metric: str, against: Setting) -> list[Difference]:
    """Every other setting beside `against`, over the questions for which both have the metric, in first-seen order; a
    setting that shares none with it is left out.

    Raises UsageError where `against` was not measured, or a setting has a question twice.
    """
    settings = _settings(rows)
    if against not in settings:
        measured = ", ".join(_name(setting) for setting in settings)
        raise UsageError(f"{_name(against)} was not measured", f"measured: {measured}" if measured else "")
    base = settings[against]
    result = []
    for setting, questions in settings.items():
        pairs = [
            (row.values[metric], base[key].values[metric])
            for key, row in questions.items()
            if key in base and metric in row.values and metric in base[key].values
        ]
        if setting != against and pairs:
            estimate = _estimate([value - reference for value, reference in pairs])
            result.append(Difference(*setting, metric, against, estimate))
    return result


def _settings(rows: Iterable[Measured]) -> dict[Setting, dict[tuple[str, str, str], Measured]]:
    """The rows by setting and question."""
    settings: dict[Setting, dict[tuple[str, str, str], Measured]] = {}
    for row in rows:
        questions = settings.setdefault((row.policy, row.budget), {})
        key = row.task, row.document, row.example
        if key in questions:
            raise UsageError(
                f"question {row.example} of {row.document} stands twice under {_name((row.policy, row.budget))}",
                "give every question of a document its own id",
            )
        questions[key] = row
    return settings


def _name(setting: Setting) -> str:
    return f"{setting[0]} at {setting[1]}"


def _estimate(values: Sequence[float]) -> Estimate:
    """Seeded, so that the same values in the same order give the same interval."""
    sample = np.asarray(values, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # an infinite value stays visible in the mean, and is no warning
        mean = float(sample.mean())
    if len(sample) == 1 or not math.isfinite(mean):
        return Estimate(mean, None, None, len(sample))
    if (sample == sample[0]).all():
        return Estimate(values[0], values[0], values[0], len(sample))
    from scipy.stats import bootstrap  # takes a second to import

    interval = bootstrap(
        (sample,),
        np.mean,
        confidence_level=LEVEL,
        n_resamples=_RESAMPLES,
        batch=_BATCH,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high), len(sample))
