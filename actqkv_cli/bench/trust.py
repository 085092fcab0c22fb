"""Fits what `engine.confidence` weighs an answer by to measured ones: `python -m actqkv_cli.bench.trust FOLDER`.

FOLDER is what `actqkv bench quality … --generate --unanswerable --out FOLDER` left. The fit is cross-validated: each
question is judged by weights that were fitted without it. Beside it stands how the weights that are there already do.
"""

import json
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from actqkv_cli.bench.examples import UNANSWERABLE
from actqkv_cli.bench.paired import Measured
from actqkv_cli.bench.results import ROWS
from actqkv_cli.engine.confidence import declines, evidence, logistic, weighed

_FOLDS = 5
_RIDGE = 0.001  # keeps weights finite where the answers are told apart without fault
_DECLINED = 0.05  # of the questions that the document answers
_BINS = 10  # of confidence, for the calibration error

Floats = NDArray[np.float64]


def fit(features: Floats, outcome: Floats) -> Floats:
    """Weights `(k,)` of a logistic regression. features: `(n, k)`, first a constant; outcome: `(n,)` of 0 and 1."""

    def loss(weights: Floats) -> float:
        z = features @ weights
        return float((np.logaddexp(0, z) - outcome * z).mean() + _RIDGE * (weights[1:] ** 2).mean())

    return np.asarray(minimize(loss, np.zeros(features.shape[1])).x)


def calibration_error(confidence: Floats, right: Floats) -> float:
    """The mean distance of confidence from the share that is right, over equal bins (ECE, Naeini 2015)."""
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    return float(np.abs(np.bincount(bins, confidence - right)).sum() / len(right))


def report(rows: Sequence[Measured]) -> str:
    """Weights, and how they do on questions that they were not fitted to, for each setting that has both kinds."""
    lines = []
    for policy, budget in dict.fromkeys((row.policy, row.budget) for row in rows if "strength" in row.values):
        ours = [row for row in rows if (row.policy, row.budget) == (policy, budget)]
        lines += [f"{policy} {budget}", *(f"  {line}" for line in _report(ours))]
    return "\n".join(lines)


def _report(rows: Sequence[Measured]) -> list[str]:
    answerable = np.array([not row.task.endswith(UNANSWERABLE) for row in rows], dtype=float)
    if answerable.all() or not answerable.any():
        return ["needs answerable and unanswerable questions: measure with --unanswerable"]
    right = np.array([row.values.get("contains", row.values.get("score", 0.0)) >= 0.5 for row in rows], dtype=float)
    right *= answerable
    refused = np.array([declines(row.answer) for row in rows])  # in words
    values = [row.values for row in rows]
    features = np.array([evidence(v["likelihood"], v["least"], v["strength"], v.get("coverage")) for v in values])
    # A question's two rows, of its own document and of another, stay in one fold.
    folds = np.array([zlib.crc32(row.example.encode()) % _FOLDS for row in rows])
    found = {}
    for name, outcome in (("answerable", answerable), ("right", right)):
        p = np.zeros(len(rows))
        for fold in range(_FOLDS):
            held = folds == fold
            fitted = ~held & ~refused
            weights = fit(features[fitted], outcome[fitted])
            p[held] = [logistic(weights.tolist(), row.tolist()) for row in features[held]]
        found[name] = np.where(refused, 0.0, p)
    threshold = np.quantile(found["answerable"][answerable == 1], _DECLINED)
    declined = refused | (found["answerable"] < threshold)
    current = [weighed(row.answer, one.tolist()) for row, one in zip(rows, features, strict=True)]
    answered, confident = np.array([(one.answered, one.confidence) for one in current]).T
    return [
        *(
            f"{name}: " + ", ".join(f"{weight:.2f}" for weight in fit(features[~refused], outcome[~refused]))
            for name, outcome in (("answerable", answerable), ("right", right))
        ),
        f"fitted, declined below {threshold:.2f}: {_outcome(declined, found['right'], answerable, right)}",
        f"as it is: {_outcome(answered == 0, confident, answerable, right)}",
    ]


def _outcome(declined: NDArray[np.bool_], confidence: Floats, answerable: Floats, right: Floats) -> str:
    return (
        f"declined {_percent(declined[answerable == 0])} of {int((answerable == 0).sum())} unanswerable, "
        f"{_percent(declined[answerable == 1])} of {int(answerable.sum())} answerable, "
        f"{_percent(declined[right == 1])} of those answered rightly; "
        f"confidence: Brier {((confidence - right) ** 2).mean():.3f}, "
        f"calibration error {calibration_error(confidence, right):.3f}"
    )


def _percent(flags: NDArray[np.bool_]) -> str:
    return f"{100 * flags.mean():.0f} %"


if __name__ == "__main__":
    text = (Path(sys.argv[1]) / ROWS).read_text()
    print(report([Measured(**json.loads(line)) for line in text.splitlines()]))
