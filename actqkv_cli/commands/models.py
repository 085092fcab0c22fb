"""actqkv models: those that are known by name, and the one for a user who names none."""

import sys
from typing import Any

from actqkv_cli.config import Settings
from actqkv_cli.errors import UsageError
from actqkv_cli.loading import choose_default, is_here, locate
from actqkv_cli.model import catalogue
from actqkv_cli.model.atomic import remove_once
from actqkv_cli.model.catalogue import CATALOGUE, KnownModel
from actqkv_cli.model.fetch import folder_of, leftovers_of
from actqkv_cli.output import confirmed, note, print_json
from actqkv_cli.worker import client


def ls(settings: Settings, as_json: bool) -> None:
    """The models of the catalogue, and which is the default. Raises what `choose` raises."""
    choice = choose_default(settings, quiet=True)
    rows: list[dict[str, Any]] = [
        {
            "name": model.name,
            "here": is_here(model, settings),
            "default": model == choice.model,
            "fetch_bytes": model.fetch_bytes,
            "disk_bytes": model.disk_bytes,
            "memory_bytes": model.memory_bytes(choice.dtype),
            "window": model.window,
            "licence": model.licence,
        }
        for model in CATALOGUE
    ]
    if as_json:
        where = {"free_memory_bytes": choice.free, "device": str(choice.device), "dtype": choice.dtype}
        print_json({"folder": str(settings.cache / "models"), **where, "models": rows})
        return
    for row in rows:
        state = "here" if row["here"] else f"{row['fetch_bytes'] / 1e6:,.0f} MB to fetch"
        sys.stdout.write(
            f"{row['name']:<20}{state:<19}needs {row['memory_bytes'] / 1e9:.1f} GB of memory in {choice.dtype}, "
            f"window of {row['window']:,} tokens, {row['licence']}{'  [default]' if row['default'] else ''}\n"
        )
    note(f"default: {choice.model.name} ({choice.reason})")


def fetch(name: str, settings: Settings, quiet: bool, as_json: bool) -> None:
    """Raises UsageError for an unknown name, and what `resolve` raises."""
    model = _known(name)
    files = locate(model.name, settings, quiet or as_json)
    if as_json:
        print_json({"name": model.name, "folder": str(files.folder)})
    elif not quiet:
        note(f"{model.name} is here: {files.folder}")


def rm(name: str, settings: Settings, yes: bool, as_json: bool) -> None:
    """Raises UsageError for an unknown name, or while the model is in use."""
    model, models = _known(name), settings.cache / "models"
    folder = folder_of(model, models)
    paths = [path for path in (folder, leftovers_of(model, models)) if path.is_dir()]
    size = sum(file.stat().st_size for path in paths for file in path.rglob("*") if file.is_file())
    status = client.running()
    if status and status["model"] in (model.name, *model.aliases):
        raise UsageError(f"the worker has {model.name} loaded", "`actqkv worker stop` ends it")
    if not paths:
        note(f"{model.name} is not here")
    elif yes or confirmed(f"Remove {model.name} ({size / 1e6:,.0f} MB)?"):
        remove_once(folder, paths)
        note(f"removed {model.name} ({size / 1e6:,.0f} MB)")
    else:
        note(f"kept {model.name}")
        paths = []
    if as_json:
        print_json({"removed": [str(path) for path in paths], "bytes": size if paths else 0})


def _known(name: str) -> KnownModel:
    model = catalogue.find(name)
    if model is None:
        raise UsageError(f"no model is called {name!r}", f"there are {catalogue.NAMES}")
    return model
