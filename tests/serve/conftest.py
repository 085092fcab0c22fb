import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sandbox import SAMPLES, SMALL, Sandbox, flip, save_tiny_model
from serving import Server, running

from actqkv_cli.store import jsonfile


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """A handbook and a log, read by a tiny model; copies of the log as if read by another model, damaged in a
    block, and without its manifest. The handbook is the latest."""
    root = tmp_path_factory.mktemp("shelf")
    save_tiny_model(root / "tiny", [(SAMPLES / "harbour-handbook.md").read_text()])
    (root / "log.txt").write_text((SAMPLES / "keepers-log.txt").read_text()[:6000])
    (root / "handbook.md").write_text((SAMPLES / "harbour-handbook.md").read_text()[:16_000])
    box = Sandbox(root, root / "cache")
    done = box.run("ingest", root / "log.txt", root / "handbook.md", "--model", root / "tiny", *SMALL)
    assert done.code == 0, done.err
    log = box.folder("log")
    for name in ("alien", "broken", "torn"):
        copy = box.home / f"{name}-00000000"
        shutil.copytree(log, copy)
        record: dict[str, Any] = jsonfile.read(copy / "manifest.json")[0]
        record["id"], record["source"]["name"] = copy.name, f"{name}.txt"
        if name == "alien":
            record["model"]["weights"] = "0" * 64
        (copy / "manifest.json").write_bytes(jsonfile.encode(record))
        if name == "torn":
            (copy / "manifest.json").unlink()
    cache = box.home / "broken-00000000" / "kv-00000.safetensors"
    flip(cache, int.from_bytes(cache.read_bytes()[:8], "little") + 8 + 3)  # in the first block, which is always read
    (box.folder("handbook") / "manifest.json").touch()
    return box


@pytest.fixture(scope="session")
def server(shelf: Sandbox) -> Iterator[Server]:
    with running(shelf) as server:
        yield server


@pytest.fixture
def box(tmp_path: Path) -> Sandbox:
    """An empty library, and no model."""
    return Sandbox(tmp_path, tmp_path / "cache")
