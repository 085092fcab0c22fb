from collections.abc import Iterator
from pathlib import Path

import pytest
import sandbox
from sandbox import SAMPLES, SMALL, Done, Sandbox
from workers import with_worker


@pytest.fixture
def box(tmp_path: Path) -> Sandbox:
    """An empty library, and no model."""
    return Sandbox(tmp_path, tmp_path / "cache")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    sandbox.save_tiny_model(folder, [(SAMPLES / "harbour-handbook.md").read_text()])
    return folder


@pytest.fixture(scope="session")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sandbox, Done]:
    """A library of three documents, and how it was made: with one bad file among the good ones."""
    root = tmp_path_factory.mktemp("made")
    files = root / "files"
    (files / "deeper").mkdir(parents=True)
    text = (SAMPLES / "harbour-handbook.md").read_text()
    (files / "handbook.md").write_text(text[:24_000])
    (files / "broken.txt").write_bytes(bytes(range(256)) * 4)
    (files / "deeper" / "log.txt").write_text((SAMPLES / "keepers-log.txt").read_text()[:5000])
    single = root / "Küste — Café.txt"
    single.write_text("Der Kranich 🐦 stand im Café an der Küste. — «Ja»\n" * 60, encoding="utf-8")
    box = Sandbox(root, root / "cache")
    return box, box.run("ingest", files, single, "--model", tiny, *SMALL, "--json")


@pytest.fixture(scope="session")
def library(made: tuple[Sandbox, Done]) -> Sandbox:
    """Not to be changed."""
    return made[0]


@pytest.fixture(scope="session")
def served(library: Sandbox) -> Iterator[Sandbox]:
    """The library of three documents, with a worker."""
    yield from with_worker(library)
