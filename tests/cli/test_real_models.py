"""The whole command on real models: the smallest with the sample PDF, the next one with a part of the log."""

import json
import os
from pathlib import Path
from typing import Any

import platformdirs
import pytest
from sandbox import SAMPLES, Done, Sandbox

pytestmark = pytest.mark.model

QUESTION = "Who built the lighthouse at Carrow Point?"
PAGE = 3
FACT = "\n\nA new cook came aboard the supply boat that evening. Her name was Marisol Quint.\n"


@pytest.fixture(scope="module")
def handbook(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sandbox, Done]:
    """A library with the sample PDF; the model comes from the user's own cache, and is fetched there if need be."""
    box = users_models(tmp_path_factory.mktemp("handbook"))
    file = SAMPLES / "harbour-handbook.pdf"
    done = box.run("ingest", file, "--model", "smollm2-135m", "--device", "cpu", "--json", timeout=900)
    assert done.code == 0, done.err
    return box, done


def users_models(root: Path) -> Sandbox:
    """An empty library, with the models of the user's own cache."""
    cache = os.environ.get("ACTQKV_CACHE") or str(platformdirs.user_cache_path("actqkv"))
    users = {name: value for name, value in os.environ.items() if not name.startswith(("ACTQKV_", "PYTHONPATH"))}
    own = {"ACTQKV_HOME": str(root / "library"), "OMP_NUM_THREADS": "2", "XDG_CACHE_HOME": str(root / "caches")}
    return Sandbox(root, root, {**users, **own, "ACTQKV_CACHE": cache})


@pytest.fixture(scope="module")
def answered(handbook: tuple[Sandbox, Done]) -> dict[str, Any]:
    done = handbook[0].run("ask", QUESTION, "--device", "cpu", "--max-tokens", "32", "--explain", "--json")
    assert done.code == 0
    result: dict[str, Any] = done.json
    return result


def test_the_handbook_is_read(handbook: tuple[Sandbox, Done]) -> None:
    box, done = handbook
    (entry,) = done.json["documents"]
    assert entry["pages"] == 27
    assert entry["tokens"] > 16_000
    assert "tokens/s" in done.err
    shown = box.run("show", "--json").json["manifest"]
    assert len(shown["retrieval_heads"]) == 6
    assert shown["geometry"]["layers"] == 30


def test_a_question_is_answered_with_its_page(answered: dict[str, Any]) -> None:
    assert answered["answer"]
    assert PAGE in [page for source in answered["sources"] for page in source["pages"]]
    assert all({"document", "page", "score", "text"} <= source.keys() for source in answered["sources"])


def test_the_record_is_complete_and_the_budget_is_kept(answered: dict[str, Any]) -> None:
    assert {"answer", "sources", "model", "usage", "timings", "budget", "seed", "version"} <= answered.keys()
    assert {"import", "load", "index", "retrieve", "first_token", "total"} == answered["timings"].keys()
    assert answered["model"]["name"] == "smollm2-135m"
    assert answered["policy"] == "hybrid"
    layers = answered["explain"]["blocks_per_layer"]
    attended = [64 + 32 * len(blocks) for blocks in layers]
    assert sum(attended) <= answered["budget"] * len(layers)
    assert answered["usage"]["blocks"] == sum(map(len, layers))
    assert 0 < answered["usage"]["bytes_read"]["blocks"] < 30 * 20_000 * 2 * 3 * 64 * 2 / 2  # not half of the cache


def test_the_same_question_gets_the_same_answer(handbook: tuple[Sandbox, Done], answered: dict[str, Any]) -> None:
    done = handbook[0].run("ask", QUESTION, "--device", "cpu", "--max-tokens", "32")
    assert (done.code, done.out) == (0, answered["answer"] + "\n")
    assert f"page {PAGE} (" in done.err


def test_most_questions_find_their_page(handbook: tuple[Sandbox, Done], answered: dict[str, Any]) -> None:
    from actqkv_cli.config import Settings
    from actqkv_cli.engine.session import open_session
    from actqkv_cli.loading import locate
    from actqkv_cli.model.load import load_model
    from actqkv_cli.model.prompt import encode_question
    from actqkv_cli.retrieval.sources import passages
    from actqkv_cli.store.reader import DocumentReader

    box = handbook[0]
    lines = [json.loads(line) for line in (SAMPLES / "questions.jsonl").read_text().splitlines()]
    questions = [line for line in lines if line["document"] == "harbour-handbook.pdf"][:20]
    found = 0
    with DocumentReader(box.folder("harbour-handbook")) as reader:
        settings = Settings(home=box.home, cache=box.more["ACTQKV_CACHE"], device="cpu", offline=True)
        files = locate("smollm2-135m", settings, quiet=True)
        loaded = load_model(files, dtype=reader.manifest.geometry.dtype, device="cpu")
        with open_session(loaded.model, reader, answered["budget"]) as session:
            for line in questions:
                run = session.start(encode_question(loaded.tokenizer, line["question"]), "hybrid", max_tokens=1)
                pages = [passage.page for passage in passages(reader, run.ranking, run.attended)][:3]
                found += bool(set(line["pages"]) & set(pages))
    print(f"{found} of {len(questions)} pages are among the first three sources")
    assert len(questions) == 20
    assert found >= 16


# Qwen2.5-Coder


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sandbox, Done]:
    """A library with some pages of the log, read by the middle one of the catalogue."""
    root = tmp_path_factory.mktemp("log")
    box = users_models(root)
    file = root / "log.txt"
    file.write_text((SAMPLES / "keepers-log.txt").read_text()[:4000] + FACT)
    done = box.run("ingest", file, "--model", "qwen2.5-coder-0.5b", "--device", "cpu", "--json", timeout=900)
    assert done.code == 0, done.err
    return box, done


def test_the_middle_model_reads_and_answers(log: tuple[Sandbox, Done]) -> None:
    box, done = log
    (entry,) = done.json["documents"]
    assert 800 < entry["tokens"] < 1600
    manifest = box.run("show", "--json").json["manifest"]
    assert manifest["model"]["name"] == "qwen2.5-coder-0.5b"
    geometry = manifest["geometry"]
    assert (geometry["layers"], geometry["kv_heads"], geometry["head_dim"]) == (24, 2, 64)
    assert len(manifest["retrieval_heads"]) == 6
    asked = box.run("ask", "What was the new cook called?", "--device", "cpu", "--max-tokens", "24", "--json")
    assert asked.code == 0, asked.err
    assert "Marisol" in asked.json["answer"]
    assert any("Marisol" in source["text"] for source in asked.json["sources"])
    assert asked.json["model"]["name"] == "qwen2.5-coder-0.5b"


def test_it_is_known_whatever_the_default_is_now(log: tuple[Sandbox, Done]) -> None:
    box, done = log
    again = box.run("ingest", box.root / "log.txt", "--device", "cpu", "--json")
    (entry,) = again.json["documents"]
    assert (entry["id"], entry["unchanged"]) == (done.json["documents"][0]["id"], True)
    assert "model:" not in again.err
