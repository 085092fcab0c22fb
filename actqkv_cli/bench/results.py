"""A folder that keeps what a run has measured, so that an interrupted one goes on where it was."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from actqkv_cli.bench.paired import Measured
from actqkv_cli.errors import UsageError
from actqkv_cli.store.files import write_atomic

RUN, ROWS = "run.json", "results.jsonl"


def resume(folder: Path, run: dict[str, Any], settings: Mapping[tuple[str, str, str], int]) -> list[Measured]:
    """What an earlier run with the same description has measured; begins the folder if there is none.

    settings: how many rows each question has, by its task, document and id; one that a kill left without some of them
    is dropped. Raises UsageError if the folder holds another run.
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
    rows = [Measured(**json.loads(line)) for line in whole.splitlines()]
    found = Counter((row.task, row.document, row.example) for row in rows)
    rows = [row for row in rows if found[key := (row.task, row.document, row.example)] == settings.get(key)]
    write_atomic(path, [_encode(rows)])
    return rows


def append(folder: Path, rows: Sequence[Measured]) -> None:
    """Add rows in one write."""
    with (folder / ROWS).open("ab") as file:
        file.write(_encode(rows))


def _encode(rows: Sequence[Measured]) -> bytes:
    return "".join(json.dumps(asdict(row)) + "\n" for row in rows).encode()
