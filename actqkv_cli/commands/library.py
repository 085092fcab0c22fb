"""actqkv ls, show, rm, verify: what is in the library, and whether it is sound."""

import datetime
import sys
from typing import Any

from actqkv_cli.config import Settings
from actqkv_cli.errors import ActqkvError, IdentityMismatch, StoreDamaged, UsageError
from actqkv_cli.output import PartlyFailed, confirmed, note, print_json
from actqkv_cli.store.library import Entry, find, list_entries, remove
from actqkv_cli.store.locks import read_lock
from actqkv_cli.store.manifest import check_identity, decisive

_OTHER = "another model"


def ls(settings: Settings, as_json: bool) -> None:
    """The documents, the latest first, damaged and unfinished ones too. Raises ActqkvError."""
    entries = list_entries(settings.home)
    if as_json:
        print_json({"home": str(settings.home), "documents": [_brief(entry) for entry in entries]})
        return
    if not entries:
        note(f"the library {settings.home} is empty; `actqkv ingest FILE` adds a document")
    for entry in entries:
        brief = _brief(entry)
        size = f"{entry.size / 1e6:,.0f} MB"
        tokens = f"{brief['tokens']:,} tokens" if brief["tokens"] else "-"
        state = "" if entry.state == "complete" else f"  [{entry.state}]"
        sys.stdout.write(f"{entry.id}  {entry.name or '-'}  {tokens}  {size}  {brief['modified']}{state}\n")


def show(selector: str | None, settings: Settings, as_json: bool) -> None:
    """What one document's store holds. Raises what `find` raises."""
    entry = find(settings.home, selector)
    assert entry.manifest is not None
    record = entry.manifest.model_dump(mode="json")
    if as_json:
        print_json({**_brief(entry), "folder": str(entry.folder), "manifest": record})
        return
    source, geometry = record["source"], record["geometry"]
    skipped = f", {len(source['skipped'])} without text" if source["skipped"] else ""
    heads = " ".join(f"{head['layer']}.{head['head']}" for head in record["retrieval_heads"])
    lines = {
        "document": f"{source['name']} ({source['page_count']} pages{skipped}, {source['characters']:,} characters)",
        "id": entry.id,
        "folder": entry.folder,
        "size": f"{entry.size / 1e6:,.1f} MB, index {record['index']['bytes'] / 1e6:,.1f} MB, "
        f"of other methods {(record['methods'] or {'bytes': 0})['bytes'] / 1e6:,.1f} MB",
        "tokens": f"{record['tokens']:,} in {entry.manifest.block_count:,} blocks of {geometry['block_size']}",
        "model": f"{record['model'].get('name')}, {geometry['dtype']}, {geometry['layers']} layers, "
        f"{geometry['kv_heads']} kv heads of {geometry['head_dim']}",
        "reading": ", ".join(f"{key} {value}" for key, value in record["reading"].items()),
        "retrieval heads": heads or "none",
        "source sha256": source["sha256"],
    }
    for key, value in lines.items():
        sys.stdout.write(f"{key + ':':<17}{value}\n")


def rm(selectors: list[str], settings: Settings, yes: bool, as_json: bool) -> None:
    """Remove documents, each only once the user has agreed. Raises UsageError, and what `find` and `remove` raise."""
    entries = {entry.id: entry for entry in [_any_state(settings, selector) for selector in selectors]}
    removed = []
    for entry in entries.values():
        if not yes and not confirmed(f"Remove {entry.name or entry.id} ({entry.id}, {entry.size / 1e6:,.1f} MB)?"):
            note(f"kept {entry.id}")
            continue
        remove(settings.home, entry)
        removed.append(_brief(entry))
        note(f"removed {entry.id} ({entry.size / 1e6:,.1f} MB)")
    if as_json:
        print_json({"removed": removed})


def verify(selector: str | None, settings: Settings, as_json: bool) -> None:
    """Check one document, or all. Raises PartlyFailed for damage, or where a document's model has changed."""
    entries = list_entries(settings.home) if selector is None else [_any_state(settings, selector)]
    if selector is not None and entries[0].state == "unfinished":
        find(settings.home, entries[0].id)  # raises what says so
    from actqkv_cli.store.verify import verify_document  # torch

    whole = [entry for entry in entries if entry.state != "unfinished"]
    problems: dict[str, list[str]] = {}
    models: dict[str, str] = {}
    for entry in whole:
        with read_lock(settings.home, entry.id):
            problems[entry.id] = verify_document(entry.folder)
        models[entry.id] = _compare_model(entry, settings)
        if not as_json:
            found = problems[entry.id] or ["sound"]
            for line in [*found, *([models[entry.id]] if models[entry.id] else [])]:
                sys.stdout.write(f"{entry.id}: {line}\n")
    bad = [name for name, found in problems.items() if found]
    other = [name for name, difference in models.items() if difference.startswith(_OTHER)]
    result = {"documents": problems, "damaged": bad, "models": models, "of_another_model": other}
    if bad:
        message = f"{len(bad)} of {len(whole)} documents are damaged: {', '.join(bad)}"
        raise PartlyFailed(StoreDamaged(message, "`actqkv rm` them and ingest them again"), result)
    if other:
        message = f"the model of {len(other)} of {len(whole)} documents has changed: {', '.join(other)}"
        raise PartlyFailed(IdentityMismatch(message, "ask with --model, or ingest them again"), result)
    if as_json:
        print_json(result)


def _compare_model(entry: Entry, settings: Settings) -> str:
    """How the model on this machine differs from the one that read the document; "" where it does not."""
    if entry.manifest is None:
        return ""
    from actqkv_cli.model.resolve import resolve  # it can fetch models, too, which `ls` need not wait for

    theirs = entry.manifest.model
    try:
        ours = {**resolve(theirs["name"], cache=settings.cache, offline=True).identity, "dtype": theirs["dtype"]}
        check_identity(decisive(theirs), decisive(ours))
    except IdentityMismatch as error:
        return f"{_OTHER}: {error.message}"
    except ActqkvError:
        return f"not compared with its model: {theirs['name']} is not on this machine"
    return ""


def _brief(entry: Entry) -> dict[str, Any]:
    record = entry.manifest or entry.progress
    modified = datetime.datetime.fromtimestamp(entry.modified).astimezone()
    return {
        "id": entry.id,
        "name": entry.name,
        "state": entry.state,
        "tokens": record.tokens if record else None,
        "pages": record.source.page_count if record else None,
        "bytes": entry.size,
        "modified": modified.isoformat(timespec="seconds"),
        **({"error": entry.failure.message} if entry.failure else {}),
    }


def _any_state(settings: Settings, selector: str) -> Entry:
    """A document by exact id or name, or by any rule of `find`; damaged and unfinished ones too."""
    entries = list_entries(settings.home)
    found = [e for e in entries if e.id == selector] or [e for e in entries if e.name == selector]
    if len(found) > 1:
        raise UsageError(f"{len(found)} documents are called {selector!r}: {', '.join(e.id for e in found)}")
    return found[0] if found else find(settings.home, selector)
