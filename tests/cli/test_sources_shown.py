"""How sources look: wrapped and with bold sentences on a terminal, a line each elsewhere."""

import io
import re
from typing import Any

import pytest

from actqkv_cli.commands.answers import show_sources

TEXT = "Before it.\nThe light was built\nby Edda Morrow. " + "And a lot of words after it. " * 10
TEXT = TEXT.strip()
START, END = TEXT.index("The light"), TEXT.index(" And a")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def source(**changes: Any) -> dict[str, Any]:
    return {"document": "a.pdf", "page": 3, "score": 0.5, "text": TEXT, "highlight": [(START, END)],
            "cut": (False, False), **changes}  # fmt: skip


def told(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, *sources: Any, supported: Any = True, **env: str) -> str:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", "COLUMNS": "60", **env}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stderr", stream)
    show_sources(sources, supported)
    return stream.getvalue()


def test_on_a_terminal_lines_hang_and_the_answer_is_bold(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = told(monkeypatch, Terminal(), source(), source(text="灯台は建てられた。" * 20, highlight=[]))
    bold = re.findall(r"\x1b\[1m(.*?)\x1b\[0m", shown)
    assert " ".join(bold) == "The light was built by Edda Morrow."
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert lines[:3] == ["", "Sources:", "  1. a.pdf, page 3 (50%)  “Before it. The light was built by"]
    assert all(re.match(r"  \d\. \S| {5}\S", line) for line in lines[2:])
    assert all(len(line) <= 60 for line in lines)
    assert max(len(line) for line in lines if "灯" in line) < 40  # they are two columns wide


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_a_terminal_that_is_to_stay_plain_does(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    shown = told(monkeypatch, Terminal(), source(), **env)
    assert "\x1b" not in shown
    assert "Edda Morrow" in shown
    assert len(shown.splitlines()) > 5


@pytest.mark.parametrize("columns", ["1", "7"])
def test_a_terminal_of_no_width_is_written_to(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    assert "Morrow" in told(monkeypatch, Terminal(), source(), COLUMNS=columns)


def test_elsewhere_each_source_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = told(monkeypatch, io.StringIO(), source(), source(cut=(True, True), text="a  part", highlight=[]))
    whole = " ".join(TEXT.split())
    assert shown == f"\nSources:\n  1. a.pdf, page 3 (50%)  “{whole}”\n  2. a.pdf, page 3 (50%)  “… a part …”\n"


@pytest.mark.parametrize("supported", [True, False, None])
def test_an_answer_of_which_nothing_stands_in_the_sources_says_so(
    monkeypatch: pytest.MonkeyPatch, supported: bool | None
) -> None:
    shown = told(monkeypatch, io.StringIO(), source(), supported=supported)
    assert ("nothing of this answer stands in the sources" in shown) == (supported is False)
