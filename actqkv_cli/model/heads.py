"""A model's retrieval heads: found at its first ingest (`engine.calibration`), and kept beside the models."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from actqkv_cli.store.files import write_atomic
from actqkv_cli.store.manifest import RetrievalHead, decisive

_VERSION = 4  # of the facts, the filler and the measure: a change finds the heads anew


class Calibration(BaseModel):
    """A model's retrieval heads, best first."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    heads: list[RetrievalHead]


def load_calibration(cache: Path, identity: Mapping[str, str]) -> Calibration | None:
    """What was found for the model of this identity, dtype included, if it was."""
    try:
        return Calibration.model_validate_json(_file(cache, identity).read_bytes())
    except (OSError, ValidationError):
        return None


def save_calibration(cache: Path, identity: Mapping[str, str], found: Calibration) -> None:
    """Raises DiskFull, ActqkvError."""
    path = _file(cache, identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, [found.model_dump_json(indent=2).encode()])


def _file(cache: Path, identity: Mapping[str, str]) -> Path:
    key = {"version": _VERSION, "model": decisive(identity)}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache / "calibration" / f"{digest[:32]}.json"
