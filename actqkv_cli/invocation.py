"""A command as it was called, and what comes of it: carried out here or by the worker, every failure an exit code."""

import os
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from actqkv_cli import terminal
from actqkv_cli.errors import EXIT_INTERRUPTED, ActqkvError, UsageError
from actqkv_cli.failures import fail, foreseen, interrupted

if TYPE_CHECKING:
    from actqkv_cli.config import Settings
    from actqkv_cli.runtime import Runtime

Result = TypeVar("Result")
Prompts = Generator[str, str | None, None]
"""A conversation: yields prompts, is sent lines, and None at their end."""


@dataclass(frozen=True)
class Invocation:
    """A command as it was called.

    began: perf_counter() then. delegate: is given the seconds to keep alive as soon as these are known, and exits or
    raises if the command is not to be carried out here. runtime: what the command loads, and finds loaded. check:
    is called wherever it may be stopped. reraised: what is raised for the caller, not for the user. prepare: is given
    the id of a document that is likely to be asked next, and the settings.
    """

    argv: Sequence[str]
    began: float
    delegate: Callable[[float], None]
    runtime: "Callable[[], AbstractContextManager[Runtime]]"
    check: terminal.Check
    reraised: tuple[type[Exception], ...] = ()
    prepare: "Callable[[str, Settings], None]" = lambda document, settings: None


def start(call: Invocation) -> int | Prompts:
    """Carry out a command: its exit code, or a conversation that has not begun yet.

    Every foreseen failure is one line on stderr and a documented exit code. Raises BrokenPipeError and `reraised`.
    """
    from actqkv_cli.main import app

    warnings.showwarning = _show_warning

    def run() -> int | Prompts:
        result = app(list(call.argv), prog_name="actqkv", obj=call, standalone_mode=False)
        if result == EXIT_INTERRUPTED:  # what typer makes of a KeyboardInterrupt
            raise KeyboardInterrupt
        sys.stdout.flush()
        return 0 if result is None else result

    return _reported(call, run)


def next_prompt(call: Invocation, conversation: Prompts, line: str | None) -> int | str:
    """The next prompt of a conversation, or its exit code, after what its user said: None at first, and at the end.

    Failures as in `start`.
    """

    def run() -> int | str:
        try:
            return conversation.send(line)
        except StopIteration:
            return 0

    return _reported(call, run)


def main(began: float) -> None:
    """Run the command line, in this process or through a worker, and exit with its code. began: perf_counter() at the
    start of the process."""
    argv, interrupts = sys.argv[1:], terminal.Interrupts()
    call = Invocation(argv, began, partial(_hand_over, argv), _own_runtime, interrupts.check)
    sys.exit(carry_out(call, interrupts))


def carry_out(call: Invocation, interrupts: terminal.Interrupts) -> int:
    """The exit code of a command, after all of its conversation if it is one. Failures as in `start`."""
    try:
        result = start(call)
        return result if isinstance(result, int) else _reported(call, lambda: _converse(call, result, interrupts))
    except BrokenPipeError:
        # The reader of our output has gone; nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Our own warnings, without the line of code that gave them; those of libraries are for programmers."""
    if category.__module__.startswith("actqkv"):
        sys.stderr.write(f"warning: {message}\n")


def _reported(call: Invocation, run: Callable[[], Result]) -> Result | int:
    """What `run` returns, or the exit code of its failure, which the user is told of."""
    try:
        return run()
    except call.reraised:
        raise
    except BrokenPipeError:
        raise
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # typer exits where it meets one
            raise error.__context__ from None
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except (KeyboardInterrupt, typer.Abort):
        return interrupted(call.argv)
    except typer.TyperException as error:  # all of them are about how the command was called
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "actqkv"
        return fail(UsageError(error.format_message(), f"see `{command} --help`"), call.argv)
    except Exception as error:
        if os.environ.get("ACTQKV_DEBUG") and not isinstance(error, ActqkvError):
            raise
        return fail(foreseen(error), call.argv)


def _converse(call: Invocation, conversation: Prompts, interrupts: terminal.Interrupts) -> int:
    reply = next_prompt(call, conversation, None)
    while isinstance(reply, str):
        line = terminal.read_line(reply)
        with interrupts.at_check():
            reply = next_prompt(call, conversation, line)
    return reply


def _hand_over(argv: Sequence[str], keep_alive: float) -> None:
    """Exit with the code of the worker that carries out the command; return if none is wanted, or to be had."""
    if keep_alive > 0:
        from actqkv_cli.worker import client

        code = client.read(argv) if argv[0] == "ingest" else client.hand_over(argv)
        if code is not None:
            sys.exit(code)


def _own_runtime() -> "Runtime":
    from actqkv_cli.runtime import Runtime

    return Runtime()
