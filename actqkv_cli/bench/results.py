"""A folder that keeps what a run has measured, so that an interrupted one goes on where it was."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from actqkv_cli.bench.paired import Measured
from actqkv_cli.errors import UsageError
from actqkv_cli.store.files import write_atomic

RUN, ROWS = "run.json", "results.jsonl"


def resume(folder: Path, run: dict[str, Any]) -> list[Measured]:
    """What an earlier run with the same description has measured; begins the folder if there is none.

    A line that was cut off by a kill is dropped. Raises UsageError if the folder holds another run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        earlier = json.loads((folder / RUN).read_bytes())
    except FileNotFoundError:
        write_atomic(folder / RUN, [json.dumps(run, indent=2, sort_keys=True).encode()])
        return []
    except ValueError as error:
        raise UsageError(f"{folder / RUN} cannot be read: {error}", "choose another folder") from None
    for name in sorted({*earlier, *run}):
        if earlier.get(name) != run.get(name):
            raise UsageError(f"{folder} holds another run: {name} differs", "choose another folder, or delete it")
    path = folder / ROWS
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    lines = whole.splitlines()
    write_atomic(path, [line + b"\n" for line in lines])
    return [Measured(**json.loads(line)) for line in lines]


def append(folder: Path, rows: Sequence[Measured]) -> None:
    """Add rows in one write."""
    text = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
    with (folder / ROWS).open("ab") as file:
        file.write(text.encode())
