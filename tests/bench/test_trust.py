"""What must be true of the fit behind confidence: it finds what answers were drawn by, and says how good it is."""

import json
import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from actqkv_cli.bench.examples import UNANSWERABLE
from actqkv_cli.bench.paired import Measured
from actqkv_cli.bench.results import ROWS
from actqkv_cli.bench.trust import calibration_error, fit, report
from actqkv_cli.engine.confidence import evidence, weighed


def row(number: int, answerable: bool, likelihood: float, strength: float, right: bool, answer: str = "so") -> Measured:
    values = {"likelihood": likelihood, "least": likelihood, "strength": strength}
    values |= {"contains": float(right)} if answerable else {"declined_rightly": 0.0}
    task = "qa" if answerable else "qa" + UNANSWERABLE
    return Measured(str(number), task, "book", 100, "hybrid", 448, values, answer=answer)


def test_the_weights_that_outcomes_were_drawn_by_are_found() -> None:
    generator = np.random.default_rng(0)
    seen = np.column_stack([np.ones(20_000), generator.normal(size=(20_000, 2))])
    drawn = generator.random(len(seen)) < 1 / (1 + np.exp(-seen @ [0.5, 1.5, -1.0]))
    np.testing.assert_allclose(fit(seen, drawn.astype(float)), [0.5, 1.5, -1.0], atol=0.15)


def test_confidence_that_comes_true_has_no_calibration_error() -> None:
    confidence = np.repeat([0.25, 0.75], 400)
    right = np.tile([1.0, 0.0, 0.0, 0.0], 100), np.tile([1.0, 1.0, 1.0, 0.0], 100)
    assert calibration_error(confidence, np.concatenate(right)) < 1e-9
    assert math.isclose(calibration_error(np.full(10, 1.0), np.zeros(10)), 1.0)


def test_the_report_says_how_many_are_declined(tmp_path: Path) -> None:
    """Of 100 questions that are answered surely two decline in words; 100 others are answered hardly, or all alike."""
    generator = np.random.default_rng(1)
    sure, hardly = 0.9 + generator.random(100) / 20, 0.2 + generator.random(100) / 20
    spoken = ["The document does not say." if number in (3, 60) else "so" for number in range(100)]
    rows = [row(number, True, sure[number], 5.0, number % 2 == 1, spoken[number]) for number in range(100)]
    told_apart = rows + [row(number, False, hardly[number], 2.0, False) for number in range(100)]
    alike = rows + [row(number, False, sure[number], 5.0, False) for number in range(100)]
    (tmp_path / ROWS).write_text("".join(json.dumps(asdict(one)) + "\n" for one in told_apart))
    done = subprocess.run(
        [sys.executable, "-m", "actqkv_cli.bench.trust", tmp_path], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == report(told_apart)
    assert "hybrid 448" in done.stdout
    assert "100 % of 100 unanswerable, 5 % of 100 answerable" in done.stdout
    as_it_is = done.stdout.partition("as it is: ")[2]
    seen = [(v["likelihood"], v["least"], v["strength"], None) for v in (one.values for one in told_apart)]
    trusted = [weighed(one.answer, evidence(*by)).answered for one, by in zip(told_apart, seen, strict=True)]
    declined = [kind.count(False) for kind in (trusted[100:], trusted[:100])]
    assert as_it_is.startswith("declined {} % of 100 unanswerable, {} % of 100 answerable".format(*declined))
    assert "100 % of 100 unanswerable" not in report(alike)
    assert "needs" in report(rows)
