"""Streams: stdout carries only the answer or only JSON; progress, warnings and timings go to stderr."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.text import Text

from actqkv_cli.errors import ActqkvError, UsageError

_PLAIN_EVERY = 10.0  # seconds between progress lines where stderr is no terminal
_NARROWEST = 20  # columns that are written in, however narrow a terminal says it is


class PartlyFailed(ActqkvError):
    """A failure, with the result of what was done before it: with --json both go into one object."""

    def __init__(self, error: ActqkvError, result: dict[str, Any]) -> None:
        super().__init__(error.message, error.hint)
        self.exit_code, self.kind, self.result = error.exit_code, error.kind, result


def stderr() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True, emoji=False, markup=False)


def note(text: str) -> None:
    """One line to stderr."""
    stderr().print(text)


def note_error(error: ActqkvError) -> None:
    """A failure after which the command goes on, in one line to stderr."""
    note(f"error: {error.message}" + (f"; {error.hint}" if error.hint else ""))


def note_hanging(label: str, pieces: Sequence[tuple[str, bool]]) -> None:
    """A label and text to stderr. On a terminal the text is wrapped beside the label, and what is marked is bold."""
    console = stderr()
    bold = "" if console.no_color else "bold"
    text = Text.assemble(*((piece, bold if marked else "") for piece, marked in pieces))
    if not console.is_terminal:
        console.print(label + text.plain)
        return
    for line in text.wrap(console, max(_NARROWEST, console.width - len(label))):
        line.rstrip()
        console.print(Text(label) + line)
        label = " " * len(label)


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")
    sys.stdout.flush()


def print_event(kind: str, **fields: Any) -> None:
    """One event of a JSON-lines stream."""
    sys.stdout.write(json.dumps({"type": kind, **fields}, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def confirmed(question: str) -> bool:
    """Whether the user says yes, on stderr. Raises UsageError if there is nobody to ask."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError("rm asks before it removes, and there is no terminal to ask on", "add --yes")
    # Not typer's or input's prompt: they write a part of it to stdout.
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


class Report(Protocol):
    def __call__(self, stage: str, done: int, total: int) -> None: ...


@contextmanager
def progress(quiet: bool = False, unit: str = "tokens") -> Iterator[Report]:
    """Progress of work that has stages: a bar on a terminal, else a plain line now and then.

    unit: what is counted; a stage that counts something else says so: "asking/questions".
    """
    if quiet:
        yield lambda stage, done, total: None
    elif sys.stderr.isatty():
        with _bar(unit) as report:
            yield report
    else:
        yield _plain_lines(unit)


@contextmanager
def _bar(unit: str) -> Iterator[Report]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr(), transient=True) as bar:
        tasks: dict[str, Any] = {}
        rates: dict[str, _Rate] = {}

        def report(stage: str, done: int, total: int) -> None:
            stage, counted = _named(stage, unit)
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total or None, rate="")
                rates[stage] = _Rate(done)
            bar.update(tasks[stage], completed=done, total=total or None, rate=rates[stage].text(done, counted))

        yield report


def _plain_lines(unit: str) -> Report:
    last: dict[str, float] = {}
    rates: dict[str, _Rate] = {}

    def report(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        stage, counted = _named(stage, unit)
        if stage not in last:
            last[stage], rates[stage] = now, _Rate(done)
        elif now - last[stage] >= _PLAIN_EVERY:
            last[stage] = now
            share = f" of {total:,}" if total else ""
            rate = rates[stage].text(done, counted) + rates[stage].left(done, total)
            note(f"{stage}: {done:,}{share} {counted}, {rate}")

    return report


def _named(stage: str, unit: str) -> tuple[str, str]:
    name, _, counted = stage.partition("/")
    return name, counted or unit


class _Rate:
    """Speed since a stage began in this run, what an earlier run did left out."""

    def __init__(self, done: int) -> None:
        self._first, self._began = done, time.monotonic()

    def _per_second(self, done: int) -> float:
        return (done - self._first) / max(time.monotonic() - self._began, 1e-9)

    def text(self, done: int, unit: str) -> str:
        rate = self._per_second(done)
        return f"{rate:,.{0 if rate >= 10 else 2}f} {unit}/s" if done > self._first else ""

    def left(self, done: int, total: int) -> str:
        rate = self._per_second(done)
        return f", {(total - done) / rate:,.0f} s left" if rate > 0 and total > done else ""
