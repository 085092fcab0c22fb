"""From what the user typed to a folder of model files on this machine."""

import os
import re
from pathlib import Path

from actqkv_cli.errors import UsageError
from actqkv_cli.model import catalogue
from actqkv_cli.model.fetch import hub_model, known_model
from actqkv_cli.model.files import Digests, ModelFiles, identity_of, unreadable
from actqkv_cli.model.gguf import convert_once
from actqkv_cli.progress import Progress, silent

_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def resolve(spec: str, *, cache: Path, offline: bool, progress: Progress = silent) -> ModelFiles:
    """The files of the model that `spec` names.

    It is a name of the catalogue, a folder, a GGUF file, or "org/name[@revision]" of Hugging Face.
    Fetches and converts what is not here yet; `offline` (or HF_HUB_OFFLINE) forbids the network.
    Raises UsageError when `spec` cannot be a model we read, ModelUnavailable when it is not to be had,
    DiskFull, and OutOfMemory in a conversion.
    """
    offline = offline or offline_by_environment()
    digests = Digests(cache / "digests.json")
    name = spec
    if known := catalogue.find(spec):
        name, folder = known.name, known_model(known, cache / "models", offline=offline, progress=progress)
    elif spec and (path := Path(spec).expanduser()).is_dir():
        folder = path.resolve()
    elif spec and path.is_file():
        if path.suffix.lower() != ".gguf":
            raise UsageError(f"not a model folder or a .gguf file: {spec}")
        folder = convert_once(path, cache / "models", digests.of_file(path, progress), progress)
    elif _looks_like_path(spec):
        raise UsageError(f"no such model folder or file: {spec}")
    elif hub_id := _HUB_ID.fullmatch(spec):
        folder = hub_model(hub_id["repo"], hub_id["revision"], offline=offline, progress=progress)
    else:
        raise UsageError(
            f"not a model: {spec!r}",
            f"give {catalogue.NAMES}, a model folder, a .gguf file, or a Hugging Face id such as org/name",
        )
    if problem := unreadable(folder):
        raise UsageError(f"{name}: {problem}")
    identity = {"name": name, **identity_of(folder, digests, progress)}
    digests.save()
    return ModelFiles(name=name, folder=folder, identity=identity)


def offline_by_environment() -> bool:
    """Whether HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids the network, as huggingface_hub reads them."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in {"1", "ON", "YES", "TRUE"}


def _looks_like_path(spec: str) -> bool:
    return (
        spec.startswith(("/", ".", "~"))
        or "\\" in spec
        or spec.count("/") > 1 + spec.partition("@")[2].count("/")
        or spec.endswith("/")
        or spec.lower().endswith((".gguf", ".safetensors", ".bin"))
    )
