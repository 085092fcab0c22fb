"""What a folder of model files is: what it must hold, and the digests that say which model it is."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actqkv_cli.errors import UsageError
from actqkv_cli.progress import Progress, silent

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ModelFiles:
    """A model on this machine. `identity` is equal for equal files, wherever they lie, but for its "name"."""

    name: str
    folder: Path  # config.json, safetensors weights, tokenizer.json
    identity: dict[str, str]  # "name"; sha256 of "weights", "config", "tokenizer"; of "chat_template", or ""


def unreadable(folder: Path) -> str:
    """What keeps `folder` from being a model that we read, in words; empty when nothing does."""
    if not (folder / "config.json").is_file():
        return "the model folder has no config.json"
    try:
        weights = weight_files(folder)
    except UsageError as error:
        return error.message
    if not weights:
        pickled = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
        refused = f" ({pickled[0].name} is pickle, which is never read)" if pickled else ""
        return f"the model folder has no safetensors weights{refused}"
    absent = [path.name for path in weights if not path.is_file()]
    if absent:
        return f"the model folder lacks {absent[0]}, which its index names"
    if (folder / "adapter_config.json").is_file():
        return "the model folder holds an adapter; merge it into its model first"
    if not (folder / "tokenizer.json").is_file():
        return "the model folder has no tokenizer.json"
    return ""


def weight_files(folder: Path) -> list[Path]:
    """The weight files that transformers would load, by name: one, or the shards that the index lists."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / WEIGHTS_INDEX).is_file():
        return []
    shards = read_json(folder / WEIGHTS_INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UsageError(f"{WEIGHTS_INDEX} lists no weights")
    names = {str(name) for name in shards.values()}
    if any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise UsageError(f"{WEIGHTS_INDEX} names something other than safetensors files beside it")
    return [folder / name for name in sorted(names)]


class Digests:
    """sha256 digests of large files, remembered in one JSON file by path, size, time of change and inode.

    The file is a convenience: what is damaged or cannot be written is ignored.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = self._read()
        self._new: dict[str, Any] = {}

    def of_file(self, path: Path, progress: Progress = silent) -> str:
        """The sha256 of the file's bytes."""
        blob = path.resolve()
        if path.is_symlink() and blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
            return blob.name  # the Hugging Face cache names large files by their sha256
        return self._remembered("bytes", blob, lambda: _hash_file(blob, progress))

    def of_tokenizer(self, path: Path) -> str:
        """The sha256 of a tokenizer.json, without the settings that its last user left in it."""
        blob = path.resolve()
        return self._remembered(
            "tokenizer", blob, lambda: _hash_json(_without(read_json(blob), {"truncation", "padding"}))
        )

    def save(self) -> None:
        """Write what was hashed since the file was read."""
        if not self._new:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(f".{os.getpid()}")
            # Read again: another process may have hashed another model meanwhile.
            text = json.dumps({**self._read(), **self._new}, indent=1, sort_keys=True)
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(self._path)
            self._new = {}

    def _read(self) -> dict[str, Any]:
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _remembered(self, kind: str, path: Path, compute: Callable[[], str]) -> str:
        key, stamp = f"{kind}:{path}", _stamp(path)
        known = self._known.get(key)
        if isinstance(known, list) and known[:-1] == stamp and _SHA256.fullmatch(str(known[-1])):
            return str(known[-1])
        digest = compute()
        if _stamp(path) == stamp:
            self._known[key] = self._new[key] = [*stamp, digest]
        return digest


def identity_of(folder: Path, digests: Digests, progress: Progress = silent) -> dict[str, str]:
    """The digests of the model in `folder`. Raises UsageError for a file that is not what it should be."""
    weights = {path.name: digests.of_file(path, progress) for path in weight_files(folder)}
    config = read_json(folder / "config.json")
    settings_path = folder / "tokenizer_config.json"
    settings = read_json(settings_path) if settings_path.is_file() else {}
    tokenizer = {
        "tokenizer": digests.of_tokenizer(folder / "tokenizer.json"),
        "bos": token_text(settings.get("bos_token")),
        "eos": token_text(settings.get("eos_token")),
    }
    template = chat_template(folder, settings)
    return {
        "weights": _hash_json(weights),
        "config": _hash_json(_lasting(config)),
        "tokenizer": _hash_json(tokenizer),
        "chat_template": hashlib.sha256(template.encode()).hexdigest() if template else "",
    }


def _lasting(config: dict[str, Any]) -> dict[str, Any]:
    # What merely records who saved it, and in which type: the digest of the weights covers that.
    private = {key for key in config if key.startswith("_")}
    return _without(config, private | {"transformers_version", "dtype", "torch_dtype"})


def chat_template(folder: Path, settings: dict[str, Any]) -> str:
    """The model's, or "". settings: what tokenizer_config.json says. Raises UsageError for one that is no text."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be read as text") from error
    told = settings.get("chat_template") or ""
    if isinstance(told, list):
        named = [entry for entry in told if isinstance(entry, dict) and entry.get("name") == "default"]
        told = named[0].get("template") if named else None
    if not isinstance(told, str):
        raise UsageError(f"{folder / 'tokenizer_config.json'} has a chat_template that is none")
    return told


def token_text(token: object) -> str:
    """The text of a special token as tokenizer_config.json gives it, or ""."""
    return str(token.get("content", "") if isinstance(token, dict) else token or "")


def _stamp(path: Path) -> list[int]:
    # Not the time of the inode's change: a backup, or another owner, would have gigabytes hashed again.
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _hash_file(path: Path, progress: Progress) -> str:
    digest, size = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
            progress("hash", file.tell(), size)
    return digest.hexdigest()


def _hash_json(value: object) -> str:
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UsageError when it cannot be read as one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as JSON") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} is not a JSON object")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """The same object always gives the same bytes."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _without(mapping: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in keys}
