"""`actqkv models`, and the model that is taken where none is named."""

import json
from pathlib import Path
from typing import Any

import pytest
from sandbox import SAMPLES, SMALL, Done, Sandbox

from actqkv_cli.commands import ingest
from actqkv_cli.config import Settings
from actqkv_cli.invocation import Invocation
from actqkv_cli.model import choose
from actqkv_cli.model.catalogue import CATALOGUE, KnownModel
from actqkv_cli.model.fetch import folder_of, leftovers_of
from actqkv_cli.runtime import Runtime

SMALLEST, MIDDLE, LARGEST = CATALOGUE


def put(box: Sandbox, model: KnownModel, tiny: Path) -> Path:
    """A tiny model in the place of a model of the catalogue."""
    folder = folder_of(model, box.cache / "models")
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(tiny)
    return folder


def test_they_are_listed(box: Sandbox, tiny: Path) -> None:
    put(box, SMALLEST, tiny)
    done = box.run("models", "--json")
    assert done.code == 0, done.err
    listed = {row["name"]: row for row in done.json["models"]}
    assert list(listed) == ["smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"]
    assert [row["here"] for row in listed.values()] == [True, False, False]
    assert [row["default"] for row in listed.values()].count(True) == 1
    row = listed["qwen2.5-coder-1.5b"]
    assert (row["licence"], row["window"], row["fetch_bytes"]) == ("Apache-2.0", 32_768, 1_092_845_809)
    assert row["memory_bytes"] > 4.5e9
    text = box.run("models")
    assert text.code == 0
    assert [line.split()[0] for line in text.out.splitlines()] == list(listed)
    assert text.out.count("[default]") == 1
    assert "1,093 MB to fetch" in text.out
    assert "GB of free memory" in text.err


def test_offline_a_model_is_not_fetched(box: Sandbox) -> None:
    done = box.run("models", "fetch", "qwen2.5-coder-0.5b", "--json")
    assert done.code == 9
    assert done.json["error"]["kind"] == "model_unavailable"
    assert done.err.count("\n") <= 2


@pytest.mark.parametrize("command", [["fetch", "gpt2"], ["rm", "gpt2", "--yes"]])
def test_an_unknown_name_is_one_line(command: list[str], box: Sandbox) -> None:
    done = box.run("models", *command)
    assert (done.code, done.out) == (2, "")
    assert "no model is called 'gpt2'" in done.err
    assert "qwen2.5-coder-0.5b" in done.err


def test_what_is_here_already_is_only_named(box: Sandbox, tiny: Path) -> None:
    folder = put(box, MIDDLE, tiny)
    done = box.run("models", "fetch", MIDDLE.name, "--json")
    assert (done.code, done.json) == (0, {"name": MIDDLE.name, "folder": str(folder)})


def test_a_model_is_removed_with_what_a_fetch_has_left(box: Sandbox) -> None:
    models = box.cache / "models"
    folder, leftovers = folder_of(MIDDLE, models), leftovers_of(MIDDLE, models)
    for path in (folder, leftovers, folder_of(SMALLEST, models)):
        path.mkdir(parents=True)
        (path / "file").write_bytes(b"12345")
    asked = box.run("models", "rm", MIDDLE.name)
    assert asked.code == 2
    assert "--yes" in asked.err
    assert folder.is_dir()
    done = box.run("models", "rm", MIDDLE.name, "--yes", "--json")
    assert (done.code, done.json["bytes"], len(done.json["removed"])) == (0, 10, 2)
    assert [path.name for path in models.iterdir() if path.suffix != ".lock"] == [folder_of(SMALLEST, models).name]
    again = box.run("models", "rm", MIDDLE.name, "--yes", "--json")
    assert (again.code, again.json) == (0, {"removed": [], "bytes": 0})


def test_a_model_that_is_being_fetched_is_not_removed(box: Sandbox) -> None:
    from filelock import FileLock

    folder = folder_of(MIDDLE, box.cache / "models")
    leftovers_of(MIDDLE, box.cache / "models").mkdir(parents=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        done = box.run("models", "rm", MIDDLE.name, "--yes")
    assert done.code == 2
    assert "just being fetched" in done.err


# The default


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the memory that seems to be free, in this process."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return lambda size: monkeypatch.setattr(choose, "free_memory", lambda _device: size)


def test_with_less_memory_a_known_document_stays_known(
    box: Sandbox, tiny: Path, tmp_path: Path, free: Any, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    put(box, LARGEST, tiny)
    text = tmp_path / "log.txt"
    text.write_text((SAMPLES / "keepers-log.txt").read_text()[:3000])
    settings = Settings(home=box.home, cache=box.cache, device="cpu", dtype="float32", keep_alive=0)

    call = Invocation([], 0.0, lambda keep_alive: None, Runtime, lambda: None)

    def ingested() -> Done:
        ingest.run([str(text)], None, settings, as_json=True, quiet=False, call=call)
        return Done(0, *capsys.readouterr())

    free(100_000_000_000)
    first = ingested()
    assert "model: qwen2.5-coder-1.5b (the largest that fits in 100 GB of free memory; --model chooses" in first.err
    (document,) = first.json["documents"]
    assert json.loads((box.folder("log") / "manifest.json").read_text())  # there is one
    assert box.run("show", "--json").json["manifest"]["model"]["name"] == "qwen2.5-coder-1.5b"
    free(2_000_000_000)
    again = ingested()
    assert "model:" not in again.err
    (unchanged,) = again.json["documents"]
    assert (unchanged["id"], unchanged["unchanged"]) == (document["id"], True)
    folder_of(LARGEST, box.cache / "models").unlink()  # nor is it fetched for that
    assert ingested().json["documents"][0]["unchanged"]


def test_a_library_of_the_old_default_model_still_answers(box: Sandbox, tiny: Path, tmp_path: Path) -> None:
    put(box, SMALLEST, tiny)
    text = tmp_path / "log.txt"
    text.write_text((SAMPLES / "keepers-log.txt").read_text()[:3000])
    done = box.run("ingest", text, "--model", "smollm2-135m-instruct", *SMALL)
    assert done.code == 0, done.err
    assert "model:" not in done.err
    shown = box.run("show", "--json").json["manifest"]["model"]
    assert shown["name"] == "smollm2-135m"
    asked = box.run("ask", "Who?", "--max-tokens", "2", "--device", "cpu", "--model", "smollm2-135m-instruct")
    assert asked.code == 0, asked.err
    assert box.run("verify").out.count("sound") == 1


def test_a_plan_fetches_nothing(box: Sandbox) -> None:
    done = box.run("plan", SAMPLES / "keepers-log.txt", "--model", MIDDLE.name, *SMALL, "--json")
    assert done.code == 0, done.err
    plan = done.json
    assert plan["tokens_estimated"]
    assert (plan["model"], plan["window"]) == (MIDDLE.name, 32_768)
    assert plan["setup"]["fetch_bytes"] == MIDDLE.fetch_bytes
    assert plan["setup"]["disk_bytes"] == MIDDLE.disk_bytes
    assert min(plan["setup"]["convert"], plan["setup"]["calibrate"]) > 0
    assert not (box.cache / "models").exists()
