"""A model for a command: located, fetched if need be, loaded."""

from pathlib import Path
from typing import TYPE_CHECKING

from actqkv_cli.commands.output import progress
from actqkv_cli.config import Settings
from actqkv_cli.model.files import ModelFiles, resolve

if TYPE_CHECKING:
    from actqkv_cli.model.load import LoadedModel


def locate(spec: str, settings: Settings, quiet: bool) -> ModelFiles:
    """A model's files, fetched if they are not here yet. Raises what `resolve` raises."""
    if spec != "default" and (path := Path(spec).expanduser()).exists():
        spec = str(path.resolve())  # the store keeps it, and may be asked from another folder
    with progress(quiet, "bytes") as report:
        return resolve(spec, cache=settings.cache, offline=settings.offline, progress=report)


def load(files: ModelFiles, dtype: str, settings: Settings) -> "LoadedModel":
    """Raises what `load_model` raises."""
    from actqkv_cli.model.load import load_model

    return load_model(files, dtype=dtype, device=settings.device)
