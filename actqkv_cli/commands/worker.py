"""actqkv worker: whether a worker runs in the background, and its end."""

import sys
from typing import Any

from actqkv_cli.output import note, print_json
from actqkv_cli.worker import client


def status(as_json: bool) -> None:
    """What the worker says of itself. Raises what `client.running` raises."""
    found = client.running()
    if as_json:
        print_json({"running": found is not None, **(found or {})})
    elif found is None:
        sys.stdout.write("not running\n")
    else:
        for key, value in _lines(found).items():
            sys.stdout.write(f"{key + ':':<17}{value}\n")


def stop() -> None:
    """Raises ActqkvError if the worker does not end."""
    note("the worker is stopped" if client.stop() else "no worker is running")


def _lines(found: dict[str, Any]) -> dict[str, str]:
    remaining = found["remaining_seconds"]
    chats = f", {found['conversations']} conversations" if found["conversations"] else ""
    ends = "busy" if found["busy"] else "stays" if remaining is None else f"ends in {remaining:,.0f} s if not asked"
    return {
        "process": f"{found['pid']} (actqkv {found['version']}), up {found['uptime_seconds']:,.0f} s",
        "state": ends + chats,
        "served": f"{found['served']} requests",
        "memory": f"{found['memory_bytes'] / 1e6:,.0f} MB",
        "model": f"{found['model']} on {found['device']}" if found["model"] else "none yet",
        "documents": ", ".join(found["documents"]) or "none yet",
    }
