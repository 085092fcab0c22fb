"""`actqkv bench quality` as a user runs it, on a tiny random model."""

import json
from pathlib import Path

import pytest
from sandbox import SAMPLES, SMALL, Sandbox

SHORT = ["--questions", "4", "--budgets", "640,704", "--policies", "full,acre:l1,hybrid"]


@pytest.fixture
def bench(tiny: Path) -> list[str]:
    return ["bench", "quality", "--model", str(tiny), *SMALL]


def test_a_generator_is_measured_and_drawn(library: Sandbox, bench: list[str], tmp_path: Path) -> None:
    picture = tmp_path / "quality.svg"
    done = library.run(*bench, "passkey", "--tokens", "1500", *SHORT, "--json", "--picture", picture)
    assert done.code == 0, done.err
    rows = done.json["settings"]
    assert [(row["policy"], row["budget"]) for row in rows] == [
        ("full", 0), ("acre:l1", 640), ("acre:l1", 704), ("hybrid", 640), ("hybrid", 704),
    ]  # fmt: skip
    assert all(row["questions"] == 4 for row in rows)
    assert all({"nll", "agreement", "divergence", "recall3", "bytes"} <= row["metrics"].keys() for row in rows)
    assert [row["policy"] for row in done.json["differences"]] == [row["policy"] for row in rows[1:]]
    assert picture.read_text().startswith("<?xml")
    assert not list(library.home.glob("context*"))  # what a bench reads is not the user's


def test_a_table_is_as_wide_for_every_row(library: Sandbox, bench: list[str]) -> None:
    done = library.run(*bench, "passkey", "--tokens", "1500", *SHORT, "--generate")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert len(lines) == 6
    assert len({len(line) for line in lines}) == 1
    assert "score" in lines[0]


def test_an_interrupted_run_goes_on(library: Sandbox, bench: list[str], tmp_path: Path) -> None:
    """Cut in the middle of a question, of the same name in documents of two lengths: all comes out the same."""
    command = [*bench, "passkey", "--tokens", "1500,1800", *SHORT, "--json", "--out", str(tmp_path / "run")]
    first = library.run(*command)
    assert first.code == 0, first.err
    path = tmp_path / "run" / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 8 * 5
    path.write_bytes(b"".join(lines[:17]) + lines[17][:20])
    again = library.run(*command)
    assert again.json == first.json
    assert sorted(path.read_bytes().splitlines(keepends=True)) == sorted(lines)
    assert not list((tmp_path / "run" / "library").glob("context*"))
    other = library.run(*command, "--seed", "1")
    assert other.code == 2
    assert "holds another run" in json.loads(other.out)["error"]["message"]


def test_questions_on_a_document_of_the_library(library: Sandbox, tiny: Path, tmp_path: Path) -> None:
    rows = [
        {"document": "handbook.md", "question": "Who keeps the light?", "answers": ["the keeper"], "pages": [1]},
        {"document": "other.md", "question": "Who?", "answers": ["nobody"], "pages": [1]},
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = library.run(
        "bench", "quality", path, "--doc", "handbook", "--policies", "full,heads", "--budgets", "640", "--json"
    )
    assert done.code == 0, done.err
    assert [row["questions"] for row in done.json["settings"]] == [1, 1]
    assert all("page3" in row["metrics"] for row in done.json["settings"])
    lacking = library.run("bench", "quality", path, "--doc", "handbook", "--policies", "quest", "--json")
    assert lacking.code == 2
    assert "--baselines" in lacking.json["error"]["hint"]


def test_the_needle_is_hidden_in_the_users_own_document(library: Sandbox, bench: list[str], tmp_path: Path) -> None:
    picture = tmp_path / "needle.png"
    grid = ["--haystack", str(SAMPLES / "keepers-log.txt"), "--tokens", "1200,1500", "--depths", "3"]
    one = ["--policies", "hybrid", "--budgets", "640"]
    done = library.run(*bench, "needle", *grid, *one, "--json", "--picture", picture)
    assert done.code == 0, done.err
    assert [row["questions"] for row in done.json["settings"]] == [6]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_reading_is_timed_on_the_librarys_disk(tiny: Path, library: Sandbox, tmp_path: Path) -> None:
    """Where nothing is left of it; not in the temporary folder, which may be memory."""
    box, log = Sandbox(tmp_path, library.cache), SAMPLES / "keepers-log.txt"
    done = box.run("bench", "ingest", log, "--model", tiny, *SMALL, "--rounds", "1", "--json")
    assert done.code == 0, done.err
    assert min(done.json["tokens_per_second"] + done.json["stock_tokens_per_second"]) > 0
    assert [path.name for path in box.home.iterdir()] == [".locks"]
    (file := tmp_path / "a file").touch()
    done = box.with_env(ACTQKV_HOME=str(file)).run("bench", "ingest", log, "--model", tiny, *SMALL)
    assert done.code == 1
    assert "a file" in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["passkey", "--policies", "oracle"], "no policy"),
        (["passkey", "--policies", "acre:best"], "no option"),
        (["passkey", "--budgets", "12"], "budget"),
        (["passkey", "--budgets", "many"], "--budgets"),
        (["needle"], "haystack"),
        (["no-such-file.jsonl"], "no-such-file.jsonl"),
        (["passkey", "--picture", "a.gif"], ".gif"),
        (["passkey", "--tokens", "50"], "too few"),
        (["passkey", "--policies", "gold"], "answers only"),
        (["passkey", "--unanswerable"], "answers only"),
        (["passkey", "--unanswerable", "--generate", "--together"], "all documents"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str, library: Sandbox, bench: list[str]) -> None:
    done = library.run(*bench, *arguments)
    assert done.code == 2
    assert done.out == ""
    assert words in done.err.splitlines()[0]


def test_questions_are_put_to_all_documents_at_once(library: Sandbox, bench: list[str]) -> None:
    command = [*bench, "passkey", "--tokens", "1500,1800", "--questions", "2", "--policies", "full,hybrid"]
    alone, together = (library.run(*command, "--budgets", "640", *more, "--json") for more in ([], ["--together"]))
    assert (alone.code, together.code) == (0, 0), together.err
    attended = [done.json["settings"][0]["metrics"]["attended"] for done in (alone, together)]
    assert attended[1]["mean"] > attended[0]["mean"] * 1.5  # full attention sees both documents
    assert together.json["settings"][1]["metrics"]["attended"]["mean"] <= 640


def test_answers_beside_the_stock_model_and_questions_without_an_answer(
    library: Sandbox, bench: list[str], tmp_path: Path
) -> None:
    text = (SAMPLES / "harbour-handbook.md").read_text().split("\n\n")[4:16]
    rows = [{"context": part, "question": "Who built it?", "answers": ["Edda Morrow"]} for part in text]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    command: list[str | Path] = [
        *bench, path, "--tokens", "600", "--generate", "--unanswerable", "--policies", "gold,hybrid,reread",
        "--budgets", "128", "--json", "--out", tmp_path / "run",
    ]  # fmt: skip
    done = library.run(*command, timeout=300)
    assert done.code == 0, done.err
    found = {row["policy"]: row["metrics"] for row in done.json["settings"]}
    assert set(found) == {"gold", "hybrid", "reread"}
    for metrics in found.values():
        assert {"score", "declined"} <= metrics.keys()
        assert metrics["score"]["n"] == len(rows)
    # Without an answer there is no passage that the stock model could be given.
    assert [policy for policy in found if "declined_rightly" in found[policy]] == ["hybrid"]
    assert found["hybrid"]["declined_rightly"]["n"] == len(rows)
    assert 0 <= found["hybrid"]["brier"]["mean"] <= 1
    assert library.run(*command).json["settings"] == done.json["settings"]
    kept = (tmp_path / "run" / "results.jsonl").read_bytes()
    assert kept.count(b"\n") == 4 * len(rows)  # nothing was measured again
