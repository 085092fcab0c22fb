"""Pictures: that there is one, of the right kind, the same every time; and what is refused."""

import struct
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from actqkv_cli.bench.paired import Measured
from actqkv_cli.bench.pictures import check, draw
from actqkv_cli.errors import UsageError

PNG = b"\x89PNG\r\n\x1a\n"


def questions(policies: tuple[str, ...] = ("full", "heads", "quest"), metric: str = "nll") -> list[Measured]:
    return [
        Measured(f"q{i}", "qa", "book", 41_000, policy, budget, {metric: (i + place) / 8})
        for place, policy in enumerate(policies)
        for budget in (512, 2048)
        for i in range(4)
    ]


def needles(policies: tuple[str, ...] = ("heads", "quest"), metric: str = "score") -> list[Measured]:
    return [
        Measured(f"{length}-{depth}", "needle", f"d{length}-{depth}", length - depth, policy, budget, {metric: 0.5})
        for policy in policies
        for budget in (512, 2048)
        for length in (4096, 16_384)
        for depth in (0, 50, 100)
    ]


def with_depths(rows: list[Measured]) -> list[Measured]:
    return [replace(row, depth=int(row.example.split("-")[1]) / 100) for row in rows]


def texts(rows: list[Measured], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written in the SVG, drawn with its text kept as text."""
    from actqkv_cli.bench import pictures

    monkeypatch.setitem(pictures._STYLE, "svg.fonttype", "none")
    draw(rows, folder / "text.svg")
    found: Iterator[ElementTree.Element] = ElementTree.parse(folder / "text.svg").getroot().iter()
    return ["".join(element.itertext()).strip() for element in found if element.tag.endswith("}text")]


@pytest.mark.parametrize("rows", [questions(), with_depths(needles())], ids=["budget", "needles"])
def test_a_png_and_an_svg_are_written(rows: list[Measured], tmp_path: Path) -> None:
    draw(rows, tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    assert data.startswith(PNG)
    width, height = struct.unpack(">II", data[16:24])
    assert min(width, height) > 300
    draw(rows, tmp_path / "A.SVG")
    assert ElementTree.parse(tmp_path / "A.SVG").getroot().tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize("rows", [questions(), with_depths(needles())], ids=["budget", "needles"])
@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_same_rows_give_the_same_file(rows: list[Measured], suffix: str, tmp_path: Path) -> None:
    draw(rows, tmp_path / f"a.{suffix}")
    draw(rows, tmp_path / f"b.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_an_svg_has_no_date(tmp_path: Path) -> None:
    draw(questions(), tmp_path / "a.svg")
    assert b"<dc:date" not in (tmp_path / "a.svg").read_bytes()


def test_every_policy_and_budget_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = texts(questions(), tmp_path, monkeypatch)
    for name in ("full", "heads", "quest", "512", "2,048"):
        assert written.count(name) == 1
    assert "4 questions, 95 % intervals" in written


def test_every_panel_names_its_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = texts(with_depths(needles()), tmp_path, monkeypatch)
    for name in ("heads at 512", "heads at 2,048", "quest at 512", "quest at 2,048"):
        assert written.count(name) == 1


def test_documents_of_nearly_one_length_share_a_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row for row in with_depths(needles()) if row.policy == "heads" and row.budget == 512]
    assert {row.tokens for row in rows} == {4096, 4046, 3996, 16_384, 16_334, 16_284}
    written = texts(rows, tmp_path, monkeypatch)
    assert [text for text in written if text.endswith("K")] == ["4.1K", "16K"]


def test_lengths_that_are_meant_to_differ_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [replace(row, tokens=10_000 + 300 * i) for i, row in enumerate(with_depths(needles())[:3])]
    written = texts(rows, tmp_path, monkeypatch)
    assert len([text for text in written if text.endswith("K")]) == 3


@pytest.mark.parametrize(
    ("metric", "label"),
    [
        ("nll", "nats per gold token (lower is better)"),
        ("score", "score, % (higher is better)"),
        ("recall3", "gold block among the first three, % (higher is better)"),
    ],
)
def test_the_axis_says_what_is_drawn(metric: str, label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert label in texts(questions(metric=metric), tmp_path, monkeypatch)


def test_likelihood_goes_before_score_and_score_before_recall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = questions() + questions(policies=("streaming",), metric="score")
    written = texts(rows, tmp_path, monkeypatch)
    assert "nats per gold token (lower is better)" in written
    assert "streaming" not in written  # it has none
    rows = with_depths(needles() + needles(policies=("streaming",), metric="nll"))
    assert "score, %" in texts(rows, tmp_path, monkeypatch)


def test_needles_among_other_questions_are_drawn_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = questions(metric="score") + with_depths(needles())
    assert "tokens attended per layer" in texts(rows, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "rows",
    [
        questions(policies=("full",)),
        [row for row in questions() if row.budget == 512],
        questions()[:1],
        [Measured("q", "qa", "book", 9, "bm25", 0, {"recall3": 1.0})],
        with_depths(needles(metric="recall3")),
        with_depths(needles(metric="nll")),
        with_depths(needles())[:1],
        with_depths(needles())[:-3],
        with_depths(needles(policies=tuple(f"p{i}" for i in range(7))))[::2],
    ],
    ids=["full", "one budget", "one", "lexical", "recall", "nll", "one needle", "a gap", "many policies"],
)
def test_sparse_measurements_are_drawn(rows: list[Measured], tmp_path: Path) -> None:
    draw(rows, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    "rows",
    [[], questions(metric="agreement"), with_depths(needles(metric="agreement"))],
    ids=["no rows", "another metric", "needles without a value"],
)
def test_nothing_to_draw(rows: list[Measured], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to draw"):
        draw(rows, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_infinite_values_alone_are_nothing_to_draw(tmp_path: Path) -> None:
    rows = [Measured("a", "qa", "book", 9, "heads", 512, {"nll": float("inf")})]
    with pytest.raises(UsageError, match="nothing to draw"):
        draw(rows, tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.gif", "a", ".png"])
def test_an_unknown_suffix_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="suffix") as failure:
        check(tmp_path / name)
    assert ".svg" in failure.value.hint
    with pytest.raises(UsageError, match="suffix"):
        draw(questions(), tmp_path / name)


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        draw(questions(), tmp_path / "missing" / "a.png")
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UsageError, match="cannot write"):
        draw(questions(), tmp_path / "a.png")


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match="matplotlib") as failure:
        draw(questions(), tmp_path / "a.png")
    assert failure.value.hint == 'pip install "actqkv[bench]"'


def test_the_users_own_settings_are_neither_used_nor_changed(tmp_path: Path) -> None:
    import matplotlib

    draw(questions(), tmp_path / "a.svg")
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30}):
        draw(questions(), tmp_path / "b.svg")
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "matplotlib.pyplot" not in sys.modules
