"""`actqkv plan`: what it foretells is what an ingest then leaves."""

import json
from pathlib import Path

import pytest
from sandbox import SAMPLES, SMALL, Sandbox

# What a manifest tells of its own files.
FILES = {"kv-*.safetensors": "segments", "methods.safetensors": "methods", "tokens.safetensors": "tokens"}


@pytest.mark.parametrize("more", [[], ["--baselines"]], ids=["plain", "baselines"])
def test_sizes_are_those_of_the_ingest(more: list[str], library: Sandbox, tiny: Path, tmp_path: Path) -> None:
    text = tmp_path / "handbook.md"
    text.write_text((SAMPLES / "harbour-handbook.md").read_text()[:24_000])
    box = Sandbox(tmp_path, library.cache)
    command: list[str | Path] = [text, "--model", tiny, *SMALL, *more, "--json"]
    planned = box.run("plan", *command)
    assert planned.code == 0, planned.err
    assert [path.name for path in box.home.iterdir()] == [".locks"]  # nothing was done
    ingested = box.run("ingest", *command)
    assert ingested.code == 0, ingested.err
    (document,) = ingested.json["documents"]
    plan, folder = planned.json, box.folder("handbook")
    assert (plan["tokens"], plan["pages"]) == (document["tokens"], document["pages"])
    for pattern, part in FILES.items():
        assert plan["bytes"][part] == sum(path.stat().st_size for path in folder.glob(pattern)), part
    assert plan["bytes"]["text"] == (folder / "text.txt").stat().st_size
    row = 4 * 8 * document["tokens"]  # the keys of one kv head: the retrieval heads may share some of the four
    index = (folder / "index.safetensors").stat().st_size
    assert plan["bytes"]["index"] - 3 * row <= index <= plan["bytes"]["index"]


def test_times_are_told_and_fit_together(library: Sandbox, tiny: Path) -> None:
    done = library.run("plan", SAMPLES / "keepers-log.txt", "--model", tiny, *SMALL, "--json")
    assert done.code == 0, done.err
    estimate = done.json["estimate"]
    assert min(estimate["ingest"], estimate["reread"], estimate["question"]) > 0
    count = estimate["pays_after"]
    saved = estimate["reread"] - estimate["question"]
    if count is None:
        assert saved <= 0
    else:
        assert (count - 1) * saved < estimate["ingest"] <= count * saved


def test_a_synthetic_model_is_planned_for_without_being_made(library: Sandbox, tiny: Path) -> None:
    models = library.cache / "models"
    before = set(models.iterdir()) if models.exists() else set()
    box = library.with_env(ACTQKV_MODEL=str(tiny))  # whose tokenizer there is
    done = box.run("plan", SAMPLES / "keepers-log.txt", "--synthetic-model", "smollm2-135m", *SMALL)
    assert done.code == 2
    assert "exclude one another" in done.err
    assert (set(models.iterdir()) if models.exists() else set()) == before


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["no-such-file.txt"], 3, "no such file"),
        ([str(SAMPLES / "keepers-log.txt"), "--synthetic-model", "gpt-2"], 2, "gpt-2"),
        ([str(SAMPLES / "keepers-log.txt"), "--model", "/no/such/model"], 2, "no such model"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], code: int, words: str, box: Sandbox) -> None:
    done = box.run("plan", *arguments, "--json")
    assert done.code == code
    assert words in json.loads(done.out)["error"]["message"]
    assert done.err.startswith("error: ")
