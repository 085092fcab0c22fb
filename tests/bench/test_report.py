"""The table that people read, and the JSON that programs read."""

import json
import math

import pytest

from actqkv_cli.bench.paired import Difference, Estimate, Summary
from actqkv_cli.bench.report import as_json, markdown, table

FULL = ("full", 2048)
SUMMARIES = [
    Summary(
        "heads",
        960,
        40,
        {
            "nll": Estimate(4.5312, 4.2612, 4.8412, 40),
            "agreement": Estimate(0.8649, 0.81, 0.90, 40),
            "recall1": Estimate(0.62, 0.5, 0.7, 40),
            "recall3": Estimate(0.84, 0.7, 0.9, 40),
            "recall5": Estimate(0.91, 0.8, 0.95, 40),
            "least_blocks": Estimate(3.0, 3.0, 3.0, 40),
            "most_blocks": Estimate(11.6, 11.0, 12.0, 40),
            "attended": Estimate(959.8, 959.0, 960.0, 40),
            "bytes": Estimate(12_345_678.0, 1.0, 2.0, 40),
            "of_another_tool": Estimate(1.25, 1.0, 1.5, 40),
        },
    ),
    Summary("acre:fixed", 16_384, 40, {"nll": Estimate(5.0, None, None, 1), "recall3": Estimate(1.0, 1.0, 1.0, 40)}),
    Summary("bm25", 0, 40, {"recall1": Estimate(0.825, 0.7, 0.9, 40)}),
    Summary(*FULL, 40, {"nll": Estimate(4.6, 4.4, 4.8, 40)}),
]
DIFFERENCES = [
    Difference("heads", 960, "nll", FULL, Estimate(-0.07, -0.11, -0.02, 40)),
    Difference("acre:fixed", 16_384, "nll", FULL, Estimate(0.4, None, None, 1)),
]


def cells(text: str) -> list[list[str]]:
    """By columns: two spaces or more stand between cells, one at most within."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]


def cell(summary: int, title: str) -> str:
    titles, *body = cells(table(SUMMARIES, DIFFERENCES))
    return body[summary][titles.index(title)]


def test_every_line_has_the_same_columns_and_the_same_width() -> None:
    text = table(SUMMARIES, DIFFERENCES)
    assert len({len(line) for line in text.splitlines()}) == 1
    assert len({len(line) for line in cells(text)}) == 1
    assert len(text.splitlines()) == 1 + len(SUMMARIES)
    assert text.endswith("\n")


def test_columns_line_up() -> None:
    lines = table(SUMMARIES, DIFFERENCES).splitlines()
    end = lines[0].index("budget") + len("budget")
    assert [line[:end].split()[-1] for line in lines] == ["budget", "960", "16384", "-", "2048"]


def test_settings_keep_their_order() -> None:
    assert [line[0] for line in cells(table(SUMMARIES))] == ["policy", "heads", "acre:fixed", "bm25", "full"]


@pytest.mark.parametrize(
    ("title", "text"),
    [
        ("n", "40"),
        ("nll", "4.53 ±0.31"),  # the upper side is the wider
        ("agreement %", "86 ±5"),  # the lower
        ("recall 1/3/5 %", "62/84/91"),
        ("blocks", "3 to 12"),
        ("attended", "960"),
        ("MB resident", "12.3"),
        ("nll vs full 2048", "-0.07 ±0.05"),
    ],
)
def test_how_figures_are_written(title: str, text: str) -> None:
    assert cell(0, title) == text


def test_what_is_not_known_is_a_dash() -> None:
    assert cell(1, "nll") == "5.00"
    assert cell(1, "recall 1/3/5 %") == "-/100/-"
    assert cell(1, "blocks") == "-"
    assert cell(1, "nll vs full 2048") == "+0.40"
    assert cell(2, "nll") == "-"
    assert cell(2, "budget") == "-"
    assert cell(3, "nll vs full 2048") == "-"


def test_only_metrics_that_occur_have_a_column() -> None:
    titles = cells(table(SUMMARIES))[0]
    assert not {"divergence", "score %", "page 1/3 %", "nll vs full 2048"} & set(titles)
    only = Summary("heads", 960, 1, {"recall3": Estimate(1.0, None, None, 1)})
    assert cells(table([only]))[0] == ["policy", "budget", "n", "recall 3 %"]


def test_a_difference_of_shares_is_in_points() -> None:
    difference = Difference("heads", 960, "recall3", FULL, Estimate(-0.125, -0.2, 0.05, 40))
    titles, first, *_ = cells(table(SUMMARIES, [difference]))
    assert first[titles.index("recall 3 % vs full 2048")] == "-12 ±18"


def test_no_negative_zero() -> None:
    difference = Difference("heads", 960, "nll", FULL, Estimate(-0.001, -0.002, 0.0, 40))
    assert cells(table(SUMMARIES, [difference]))[1][-1] == "+0.00 ±0.00"


def test_no_colour_whatever_the_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    assert "\x1b" not in table(SUMMARIES, DIFFERENCES)
    assert len(table(SUMMARIES, DIFFERENCES).splitlines()) == 1 + len(SUMMARIES)


def test_nothing_measured_is_a_title_alone() -> None:
    assert cells(table([])) == [["policy", "budget", "n"]]


def test_markdown_is_the_same_table() -> None:
    head, rule, *body = markdown(SUMMARIES, DIFFERENCES).splitlines()
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *body)]
    assert split == cells(table(SUMMARIES, DIFFERENCES))
    assert rule.count("|") == head.count("|")
    assert set(rule) <= set("|-: ")


def test_markdown_keeps_a_bar_in_a_name_within_its_cell() -> None:
    head, _, line = markdown([Summary("a|b", 1, 1, {})]).splitlines()
    assert line.replace(r"\|", "").count("|") == head.count("|")


def test_json_has_every_figure_in_full() -> None:
    result = json.loads(json.dumps(as_json(SUMMARIES, DIFFERENCES), allow_nan=False))
    first = result["settings"][0]
    assert (first["policy"], first["budget"], first["questions"]) == ("heads", 960, 40)
    assert first["metrics"]["nll"] == {"mean": 4.5312, "low": 4.2612, "high": 4.8412, "n": 40}
    assert first["metrics"]["of_another_tool"]["mean"] == 1.25
    assert result["settings"][1]["metrics"]["nll"] == {"mean": 5.0, "low": None, "high": None, "n": 1}
    assert result["differences"][0] == {
        "policy": "heads",
        "budget": 960,
        "metric": "nll",
        "against": {"policy": "full", "budget": 2048},
        "mean": -0.07,
        "low": -0.11,
        "high": -0.02,
        "n": 40,
    }


@pytest.mark.parametrize("mean", [math.inf, math.nan])
def test_json_never_holds_what_json_cannot(mean: float) -> None:
    result = as_json([Summary("heads", 960, 2, {"nll": Estimate(mean, None, None, 2)})])
    assert json.loads(json.dumps(result, allow_nan=False))["settings"][0]["metrics"]["nll"]["mean"] is None
