"""A model by its name, as the settings want it: fetched if need be, and loaded."""

from pathlib import Path
from typing import TYPE_CHECKING

from actqkv_cli.config import Settings
from actqkv_cli.model import catalogue
from actqkv_cli.model.files import ModelFiles
from actqkv_cli.model.resolve import resolve
from actqkv_cli.output import progress

if TYPE_CHECKING:
    from actqkv_cli.model.load import LoadedModel


def fetch_files(spec: str, settings: Settings, quiet: bool) -> ModelFiles:
    """The files of a model that is named, fetched if they are not here yet. Raises what `resolve` raises."""
    if not catalogue.find(spec) and (path := Path(spec).expanduser()).exists():
        spec = str(path.resolve())  # the store keeps it, and may be asked from another folder
    with progress(quiet, "bytes") as report:
        return resolve(spec, cache=settings.cache, offline=settings.offline, progress=report)


def load(files: ModelFiles, dtype: str, settings: Settings) -> "LoadedModel":
    """Raises what `load_model` raises."""
    from transformers.utils import logging

    from actqkv_cli.model.load import load_model

    loaded = load_model(files, dtype=dtype, device=settings.device)
    logging.set_verbosity_error()  # what transformers has to say while the model computes is for programmers
    return loaded
