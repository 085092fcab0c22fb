"""Streams: stdout carries only the answer or only JSON; progress, warnings and timings go to stderr."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from actqkv_cli.errors import ActqkvError, UsageError
from actqkv_cli.progress import Progress, silent

if TYPE_CHECKING:
    from rich.progress import TaskID

_PLAIN_EVERY = 10.0  # seconds between progress lines where stderr is no terminal
_MIN_COLUMNS = 20  # that are written in, however narrow a terminal says it is


class PartlyFailed(ActqkvError):
    """A failure, with the result of what was done before it: with --json both go into one object."""

    def __init__(self, error: ActqkvError, result: dict[str, Any]) -> None:
        super().__init__(error.message, error.hint)
        self.exit_code, self.kind, self.result = error.exit_code, error.kind, result


def stderr() -> Console:
    """A rich console on stderr, which changes nothing of what it is given."""
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
    for line in text.wrap(console, max(_MIN_COLUMNS, console.width - len(label))):
        line.rstrip()
        console.print(Text(label) + line)
        label = " " * len(label)


def write_out(text: str) -> None:
    """Text to stdout, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def print_json(value: Any) -> None:
    """The one JSON object of a command with --json."""
    write_out(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def print_event(kind: str, **fields: Any) -> None:
    """One event of a JSON-lines stream."""
    write_out(json.dumps({"type": kind, **fields}, ensure_ascii=False) + "\n")


def confirmed(question: str) -> bool:
    """Whether the user says yes, on stderr. Raises UsageError if there is nobody to ask."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError("rm asks before it removes, and there is no terminal to ask on", "add --yes")
    # Not typer's or input's prompt: they write a part of it to stdout.
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@contextmanager
def progress(quiet: bool = False, unit: str = "tokens") -> Iterator[Progress]:
    """Progress of work that has stages: a bar on a terminal, else a plain line now and then.

    unit: what is counted; a stage that counts something else says so: "asking/questions".
    """
    if quiet:
        yield silent
        return
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn()
    bar = Bar(*columns, console=stderr(), transient=True)  # shown on a terminal only
    on_terminal = sys.stderr.isatty()
    tasks: dict[str, TaskID] = {}
    started: dict[str, tuple[int, float]] = {}  # what was done then, by an earlier run, and when it was
    reached: dict[str, int] = {}
    last_line: dict[str, float] = {}

    def report(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        stage, _, counted = stage.partition("/")
        if stage not in tasks:
            tasks[stage], last_line[stage] = bar.add_task(stage, rate=""), now
        if done < reached.get(stage, done + 1):  # it begins, or begins anew: with the next document
            started[stage] = done, now
        reached[stage] = done
        first, began = started[stage]
        speed = (done - first) / max(now - began, 1e-9)
        rate = f"{speed:,.{0 if speed >= 10 else 2}f} {counted or unit}/s" if speed else ""
        bar.update(tasks[stage], completed=done, total=total or None, rate=rate)
        if not on_terminal and now - last_line[stage] >= _PLAIN_EVERY:
            last_line[stage] = now
            share = f" of {total:,}" if total else ""
            left = f"{(total - done) / speed:,.0f} s left" if speed and total > done else ""
            note(", ".join(filter(None, (f"{stage}: {done:,}{share} {counted or unit}", rate, left))))

    with bar if on_terminal else nullcontext():
        yield report
