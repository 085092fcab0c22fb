"""The user's side of a command: whether they still want it, and the lines that they type."""

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History

Check = Callable[[], None]
"""A safe point to stop at: raises KeyboardInterrupt if the user has pressed Ctrl-C, or gone from the worker."""


@contextlib.contextmanager
def on_interrupt(handler: Callable[..., object]) -> Iterator[None]:
    """Ctrl-C calls `handler` for as long as this is open, unless it is ignored (nohup). On the main thread only."""
    before = signal.getsignal(signal.SIGINT)
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Interrupts:
    """Ctrl-C in this process: it raises by itself, or while `at_check` is open, where `check` is called."""

    def __init__(self) -> None:
        self._pressed = False

    def check(self) -> None:
        """See `Check`."""
        if self._pressed:
            self._pressed = False
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def at_check(self) -> Iterator[None]:
        """Ctrl-C raises KeyboardInterrupt at the next check() only; pressed again before that, at once.

        For what goes on after it was stopped: in the midst of a step, an exception could leave what is kept half
        changed.
        """
        self._pressed = False
        with on_interrupt(self._press):
            yield

    def _press(self, *_: object) -> None:
        if self._pressed:
            raise KeyboardInterrupt
        self._pressed = True


def read_line(prompt: str) -> str | None:
    """A line from the user, with editing and history on a terminal; None at the end of the input (Ctrl-D).

    Ctrl-C clears the line. Where stdin or stderr is no terminal there is no prompt, and Ctrl-C raises.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None
    while True:
        try:
            return _session().prompt(prompt)
        except KeyboardInterrupt:
            continue
        except EOFError:
            return None


@functools.cache
def _session() -> "PromptSession[str]":
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output import create_output

    return PromptSession(history=_history(), output=create_output(stdout=sys.stderr))  # stdout is for answers


def _history() -> "History":
    """What was typed in earlier chats, for its user's eyes only; of this chat alone if it cannot be kept."""
    import platformdirs
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = platformdirs.user_state_path("actqkv") / "history"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)
