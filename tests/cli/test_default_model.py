"""The whole command on the real default model and the sample PDF."""

import json
import os
from typing import Any

import platformdirs
import pytest
from sandbox import SAMPLES, Done, Sandbox

pytestmark = pytest.mark.model

QUESTION = "Who built the lighthouse at Carrow Point?"
PAGE = 3


@pytest.fixture(scope="module")
def handbook(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sandbox, Done]:
    """A library with the sample PDF; the model comes from the user's own cache, and is fetched there if need be."""
    root = tmp_path_factory.mktemp("handbook")
    cache = os.environ.get("ACTQKV_CACHE") or str(platformdirs.user_cache_path("actqkv"))
    users = {name: value for name, value in os.environ.items() if not name.startswith(("ACTQKV_", "PYTHONPATH"))}
    own = {"ACTQKV_HOME": str(root / "library"), "OMP_NUM_THREADS": "2", "XDG_CACHE_HOME": str(root / "caches")}
    box = Sandbox(root, root, {**users, **own, "ACTQKV_CACHE": cache})
    done = box.run("ingest", SAMPLES / "harbour-handbook.pdf", "--device", "cpu", "--json", timeout=900)
    assert done.code == 0, done.err
    return box, done


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
    assert len(shown["density"]) == shown["geometry"]["layers"] == 30


def test_a_question_is_answered_with_its_page(answered: dict[str, Any]) -> None:
    assert answered["answer"]
    assert PAGE in [page for source in answered["sources"] for page in source["pages"]]
    assert all({"document", "page", "score", "text"} <= source.keys() for source in answered["sources"])


def test_the_record_is_complete_and_the_budget_is_kept(answered: dict[str, Any]) -> None:
    assert {"answer", "sources", "model", "usage", "timings", "budget", "seed", "version"} <= answered.keys()
    assert {"import", "load", "index", "retrieve", "first_token", "total"} == answered["timings"].keys()
    assert answered["model"]["name"] == "smollm2-135m-instruct"
    assert answered["policy"] == "hybrid"
    layers = answered["explain"]["blocks_per_layer"]
    attended = [64 + 512 + 32 * len(blocks) for blocks in layers]
    assert sum(attended) <= answered["budget"] * len(layers)
    assert answered["usage"]["blocks"] == sum(map(len, layers))
    assert 0 < answered["usage"]["bytes_read"]["blocks"] < 30 * 20_000 * 2 * 3 * 64 * 2 / 2  # not half of the cache


def test_the_same_question_gets_the_same_answer(handbook: tuple[Sandbox, Done], answered: dict[str, Any]) -> None:
    done = handbook[0].run("ask", QUESTION, "--device", "cpu", "--max-tokens", "32")
    assert (done.code, done.out) == (0, answered["answer"] + "\n")
    assert f"page {PAGE} (" in done.err


def test_most_questions_find_their_page(handbook: tuple[Sandbox, Done], answered: dict[str, Any]) -> None:
    from actqkv_cli.commands.models import load, locate
    from actqkv_cli.config import Settings
    from actqkv_cli.engine.session import open_session
    from actqkv_cli.model.prompt import encode_question
    from actqkv_cli.retrieval.sources import passages
    from actqkv_cli.store.reader import DocumentReader

    box = handbook[0]
    lines = [json.loads(line) for line in (SAMPLES / "questions.jsonl").read_text().splitlines()]
    questions = [line for line in lines if line["document"] == "harbour-handbook.pdf"][:20]
    found = 0
    with DocumentReader(box.folder("harbour-handbook")) as reader:
        settings = Settings(home=box.home, cache=box.more["ACTQKV_CACHE"], device="cpu", offline=True)
        loaded = load(locate("default", settings, quiet=True), reader.manifest.geometry.dtype, settings)
        tokens = reader.tokens()
        place = (reader.text(), tokens["char_start"], tokens["page"], reader.manifest.document_start, 32)
        with open_session(loaded.model, reader, answered["budget"]) as session:
            for line in questions:
                run = session.start(encode_question(loaded.tokenizer, line["question"]), "hybrid", room=1)
                pages = [passage.page for passage in passages(run.ranking, run.attended, *place)][:3]
                found += bool(set(line["pages"]) & set(pages))
    print(f"{found} of {len(questions)} pages are among the first three sources")
    assert len(questions) == 20
    assert found >= 16
