"""Means, intervals and pairing, against cases worked by hand."""

import math
import random
from dataclasses import replace

import pytest

from actqkv_cli.bench.paired import Estimate, Measured, differences, summaries
from actqkv_cli.errors import UsageError


def row(example: str, policy: str, budget: int, **values: float) -> Measured:
    return Measured(example, "qa", "book", 41_000, policy, budget, values)


def rows(policy: str, budget: int, nlls: list[float]) -> list[Measured]:
    return [row(f"q{i}", policy, budget, nll=nll) for i, nll in enumerate(nlls)]


def width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low


def test_means_of_each_metric() -> None:
    (summary,) = summaries(
        [row("a", "heads", 960, nll=1.0, score=1.0), row("b", "heads", 960, nll=4.0, score=0.0), row("c", "heads", 960)]
    )
    assert (summary.policy, summary.budget, summary.questions) == ("heads", 960, 3)
    assert summary.metrics["nll"].mean == 2.5
    assert summary.metrics["score"].mean == 0.5


def test_a_missing_metric_counts_for_nothing() -> None:
    (summary,) = summaries([row("a", "heads", 960, nll=1.0), row("b", "heads", 960, score=1.0)])
    assert summary.questions == 2
    assert summary.metrics["nll"] == Estimate(1.0, None, None, 1)
    assert "agreement" not in summary.metrics


def test_settings_come_in_the_order_they_were_first_seen() -> None:
    seen = [("quest", 512), ("actqkv", 2048), ("quest", 256), ("full", 512)]
    asked = [row(f"q{i}", policy, budget, nll=float(i)) for i in range(2) for policy, budget in seen]
    assert [(s.policy, s.budget) for s in summaries(asked)] == seen
    assert [(d.policy, d.budget) for d in differences(asked, "nll", seen[1])] == [seen[0], *seen[2:]]


def test_an_interval_covers_the_mean_and_shrinks_with_more_questions() -> None:
    draw = random.Random(3)
    widths = []
    for n in (10, 100, 1000):
        estimate = summaries(rows("heads", 960, [draw.gauss(5, 2) for _ in range(n)]))[0].metrics["nll"]
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low <= estimate.mean <= estimate.high
        widths.append(width(estimate))
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


def test_an_interval_is_as_wide_as_theory_says() -> None:
    # half of 400 answers right: the mean's standard error is 0.5 / 20
    estimate = summaries([row(str(i), "heads", 960, score=float(i % 2)) for i in range(400)])[0].metrics["score"]
    assert width(estimate) == pytest.approx(2 * 1.96 * 0.025, rel=0.06)


def test_intervals_contain_the_truth_about_as_often_as_they_say() -> None:
    draw = random.Random(5)
    samples = [rows(f"p{i}", 1, [draw.expovariate(1) for _ in range(40)]) for i in range(200)]
    estimates = [summary.metrics["nll"] for summary in summaries([r for sample in samples for r in sample])]
    covered = sum(e.low <= 1 <= e.high for e in estimates if e.low is not None and e.high is not None)
    assert 0.88 <= covered / len(estimates) <= 0.99


def test_one_question_has_no_interval() -> None:
    assert summaries(rows("heads", 960, [3.0]))[0].metrics["nll"] == Estimate(3.0, None, None, 1)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
def test_equal_values_have_an_interval_without_width(value: float) -> None:
    assert summaries(rows("heads", 960, [value] * 7))[0].metrics["nll"] == Estimate(value, value, value, 7)


@pytest.mark.parametrize("worst", [math.inf, math.nan])
def test_an_infinite_value_is_not_hidden(worst: float) -> None:
    estimate = summaries(rows("heads", 960, [1.0, worst, 2.0]))[0].metrics["nll"]
    assert not math.isfinite(estimate.mean)
    assert (estimate.low, estimate.high, estimate.n) == (None, None, 3)


def test_opposite_infinities_make_no_warning() -> None:
    asked = rows("full", 1, [math.inf, 0.0]) + rows("heads", 1, [0.0, math.inf])
    assert math.isnan(differences(asked, "nll", ("full", 1))[0].estimate.mean)


def test_differences_are_taken_question_by_question() -> None:
    asked = rows("full", 2048, [1.0, 2.0, 6.0]) + rows("heads", 960, [1.5, 3.5, 6.25])
    (difference,) = differences(asked, "nll", ("full", 2048))
    assert (difference.policy, difference.budget, difference.metric, difference.against) == (
        "heads",
        960,
        "nll",
        ("full", 2048),
    )
    assert difference.estimate.mean == pytest.approx((0.5 + 1.5 + 0.25) / 3)
    assert difference.estimate.n == 3


def test_a_constant_offset_has_no_width_however_much_the_values_vary() -> None:
    draw = random.Random(1)
    base = [draw.uniform(0, 1000) for _ in range(30)]
    asked = rows("full", 2048, base) + rows("heads", 960, [value + 0.5 for value in base])
    (difference,) = differences(asked, "nll", ("full", 2048))
    assert difference.estimate.mean == pytest.approx(0.5)
    assert width(difference.estimate) == pytest.approx(0, abs=1e-9)
    assert width(summaries(asked)[0].metrics["nll"]) > 100


def test_a_swap_of_the_two_turns_the_sign() -> None:
    asked = rows("full", 2048, [1.0, 2.0, 6.0, 3.0]) + rows("heads", 960, [1.5, 3.5, 6.25, 2.0])
    (forth,) = differences(asked, "nll", ("full", 2048))
    (back,) = differences(asked, "nll", ("heads", 960))
    assert back.estimate.mean == -forth.estimate.mean


def test_only_questions_that_both_have_are_compared() -> None:
    asked = [
        row("a", "full", 2048, nll=1.0),
        row("b", "full", 2048, nll=2.0),
        row("c", "full", 2048, score=1.0),
        row("b", "heads", 960, nll=5.0),
        row("c", "heads", 960, nll=9.0),
        row("d", "heads", 960, nll=9.0),
        row("d", "quest", 960, nll=9.0),
    ]
    (difference,) = differences(asked, "nll", ("full", 2048))
    assert (difference.policy, difference.estimate) == ("heads", Estimate(3.0, None, None, 1))


def test_questions_of_two_documents_or_tasks_may_share_an_id() -> None:
    base = row("1", "full", 2048, nll=1.0)
    others = [replace(base, document="other", values={"nll": 3.0}), replace(base, task="other", values={"nll": 5.0})]
    asked = [base, *others]
    asked += [replace(r, policy="heads", values={"nll": r.values["nll"] + 1}) for r in reversed(asked)]
    assert summaries(asked)[0].questions == 3
    (difference,) = differences(asked, "nll", ("full", 2048))
    assert difference.estimate == Estimate(1.0, 1.0, 1.0, 3)


def test_a_question_twice_under_a_setting_is_refused() -> None:
    asked = [row("a", "heads", 960, nll=1.0), row("a", "heads", 960, nll=2.0)]
    with pytest.raises(UsageError, match="question a of book stands twice under heads at 960"):
        summaries(asked)
    with pytest.raises(UsageError, match="twice"):
        differences(asked, "nll", ("heads", 960))


def test_a_reference_that_was_not_measured_is_named() -> None:
    with pytest.raises(UsageError, match="full at 512 was not measured") as failure:
        differences(rows("heads", 960, [1.0]), "nll", ("full", 512))
    assert "heads at 960" in failure.value.hint


def test_the_same_rows_give_the_same_figures() -> None:
    asked = rows("full", 1, [3.0, 1.0, 4.0, 1.5]) + rows("heads", 1, [9.0, 2.0, 6.0, 5.0])
    assert summaries(asked) == summaries(asked)
    assert differences(asked, "nll", ("full", 1)) == differences(asked, "nll", ("full", 1))


def test_nothing_measured() -> None:
    assert summaries([]) == []
