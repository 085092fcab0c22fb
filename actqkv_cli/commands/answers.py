"""An answer as it is shown: its sources, and the seconds of each stage."""

import re
import time
from collections.abc import Sequence
from typing import Any

from actqkv_cli.output import note, note_hanging


class Clock:
    """Seconds of each stage, and of all."""

    def __init__(self, began: float) -> None:
        self._began = self._last = began
        self.seconds: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """The time since the last lap is this stage's."""
        now = time.perf_counter()
        self.seconds[stage] = round(now - self._last, 4)
        self._last = now

    def since_start(self, stage: str) -> None:
        """The time since the command began is this stage's."""
        self.seconds[stage] = round(time.perf_counter() - self._began, 4)


def show_sources(sources: Sequence[dict[str, Any]], supported: bool | None, answered: bool = True) -> None:
    """To stderr: on a terminal with the highlights bold and the lines wrapped, else a line for each."""
    if supported is False:
        note("\nNote: nothing of this answer stands in the sources.")
    elif not answered:
        note("\nNote: the document may not say; these passages come nearest.")
    note("\nSources:" if sources else "\nNo sources: nothing of the document was ranked.")
    for number, source in enumerate(sources, 1):
        head = f"{source['document']}, page {source['page']} ({source['score']:.0%})  "
        note_hanging(f"  {number}. ", [(head, False), ("“", False), *_quoted(source), ("”", False)])


def _quoted(source: dict[str, Any]) -> list[tuple[str, bool]]:
    """A source's text on one line, in pieces, and which of them are highlighted."""
    text, at = source["text"], 0
    pieces = [("… ", False)] if source["cut"][0] else []
    for start, end in source["highlight"]:
        pieces += [(text[at:start], False), (text[start:end], True)]
        at = end
    pieces += [(text[at:], False)] + ([(" …", False)] if source["cut"][1] else [])
    return [(re.sub(r"\s+", " ", piece), bold) for piece, bold in pieces]
