"""A model's files by its name, as the settings want it: fetched if need be."""

from pathlib import Path
from typing import TYPE_CHECKING

from actqkv_cli.config import Settings
from actqkv_cli.model import catalogue
from actqkv_cli.model.catalogue import KnownModel
from actqkv_cli.model.fetch import folder_of
from actqkv_cli.model.files import ModelFiles
from actqkv_cli.model.resolve import resolve
from actqkv_cli.output import note, progress
from actqkv_cli.worker import client

if TYPE_CHECKING:
    from actqkv_cli.model.choose import Choice


def fetch_files(spec: str, settings: Settings, quiet: bool) -> ModelFiles:
    """The files of a model that is named, fetched if they are not here yet. Raises what `resolve` raises."""
    if not catalogue.find(spec) and (path := Path(spec).expanduser()).exists():
        spec = str(path.resolve())  # the store keeps it, and may be asked from another folder
    with progress(quiet, "bytes") as report:
        return resolve(spec, cache=settings.cache, offline=settings.offline, progress=report)


def locate(spec: str, settings: Settings, quiet: bool) -> ModelFiles:
    """A model's files, as `fetch_files`; "default" is the one that suits the machine. Raises what `choose` and
    `fetch_files` raise."""
    if spec == "default":
        choice = choose_default(settings, quiet)
        spec = choice.model.name
        if choice.crowded and client.stop() and not quiet:  # it is idle, and comes back with the next question
            note("the worker is stopped: its memory is needed")
    return fetch_files(spec, settings, quiet)


def choose_default(settings: Settings, quiet: bool) -> "Choice":
    """The model for a user who has named none, and who hears of it unless quiet. Raises what `choose` raises."""
    from actqkv_cli.model.choose import choose

    status = client.running()
    idle = status is not None and not status["busy"] and not status["conversations"]
    choice = choose(settings.device, settings.dtype, status["pid"] if status and idle else None)
    if not quiet:
        note(f"model: {choice.model.name} ({choice.reason}; --model chooses another)")
    return choice


def is_here(model: KnownModel, settings: Settings) -> bool:
    """Whether the model is fetched and converted."""
    return folder_of(model, settings.cache / "models").is_dir()
