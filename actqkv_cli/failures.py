"""The one place where a failure becomes a line on stderr, a JSON object on stdout, and an exit code."""

import contextlib
import json
import sys
from collections.abc import Sequence

from actqkv_cli.errors import (
    EXIT_INTERRUPTED,
    ActqkvError,
    DiskFull,
    OutOfMemory,
    first_line,
    out_of_memory,
    out_of_space,
)


def foreseen(error: BaseException) -> ActqkvError:
    """Running out of memory or disk can happen anywhere; all else that is not ours already is a fault of ours."""
    if isinstance(error, ActqkvError):
        return error
    if out_of_memory(error):
        return OutOfMemory("out of memory", "use a smaller --budget, a smaller model, or --device cpu")
    if out_of_space(error):
        place = getattr(error, "filename", None) or ""
        return DiskFull(f"no space left on the disk: {place}", "make room and run the command again")
    text = first_line(f"{type(error).__name__}: {error}")
    return ActqkvError(f"unexpected failure: {text}", "ACTQKV_DEBUG=1 shows where; please report it")


def interrupted(argv: Sequence[str]) -> int:
    """Tell that the command was interrupted, and how it goes on. Returns 130."""
    import shlex

    again = shlex.join(["actqkv", *argv])
    hint = f"`{again}` resumes at the last whole segment" if argv[:1] == ["ingest"] else ""
    return fail(ActqkvError("interrupted", hint), argv, EXIT_INTERRUPTED)


def fail(error: ActqkvError, argv: Sequence[str], code: int | None = None) -> int:
    """Tell of a failure as the command's words want it. Returns the exit code: `code`, else the error's own."""
    code = error.exit_code if code is None else code
    if {"--json", "--jsonl"} & set(argv):
        kind = "interrupted" if code == EXIT_INTERRUPTED else error.kind
        fields = {"kind": kind, "message": error.message, "hint": error.hint, "exit_code": code}
        done = getattr(error, "result", {})  # of a PartlyFailed
        line = json.dumps({**done, "error": fields} if "--json" in argv else {"type": "error", **fields})
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
    sys.stderr.write(f"error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
    return code
