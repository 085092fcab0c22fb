"""A model for a command: found, fetched if need be, loaded."""

from pathlib import Path
from typing import TYPE_CHECKING

from actqkv_cli.commands.output import progress
from actqkv_cli.config import Settings
from actqkv_cli.model.files import resolve

if TYPE_CHECKING:
    from actqkv_cli.model.load import LoadedModel


def load(spec: str, dtype: str, settings: Settings, quiet: bool) -> "LoadedModel":
    """Raises what `resolve` and `load_model` raise."""
    if spec != "default" and (path := Path(spec).expanduser()).exists():
        spec = str(path.resolve())  # the store keeps it, and may be asked from another folder
    with progress("bytes", quiet) as report:
        files = resolve(spec, cache=settings.cache, offline=settings.offline, progress=report)
    from actqkv_cli.model.load import load_model

    return load_model(files, dtype=dtype, device=settings.device)
