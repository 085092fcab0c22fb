"""`actqkv bench speed` as a user runs it, on a tiny random model: real processes, and a worker of its own."""

from pathlib import Path
from typing import Any

import pytest
from sandbox import SAMPLES, SMALL, Sandbox

ROUNDS = 1
WAYS = {
    ("stock", "fresh", "cold"), ("stock", "fresh", "warm"), ("stock", "resident", "warm"),
    *((method, process, state) for method in ("full", "hybrid") for process in ("fresh", "resident")
      for state in ("cold", "warm")),
}  # fmt: skip


@pytest.fixture(scope="module")
def record(library: Sandbox, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    text = tmp_path_factory.mktemp("speed") / "log.txt"
    text.write_text((SAMPLES / "keepers-log.txt").read_text()[:6000])
    picture = text.with_name("speed.png")
    sizes = ["--rounds", str(ROUNDS), "--full-tokens", "1024", "--max-tokens", "4"]
    before = {path for path in library.home.iterdir() if path.name != ".locks"}
    command: list[str | Path] = ["bench", "speed", text, "--model", tiny, *SMALL, *sizes, "--picture", picture]
    done = library.run(*command, "--json", timeout=600)
    assert done.code == 0, done.err
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert {path for path in library.home.iterdir() if path.name != ".locks"} == before  # nothing stays behind
    found: dict[str, Any] = done.json
    return found


def test_every_way_of_asking_is_measured_in_every_round(record: dict[str, Any]) -> None:
    ways = [(row["method"], row["process"], row["state"]) for row in record["asks"]]
    assert set(ways) == WAYS
    assert all(ways.count(way) == ROUNDS for way in WAYS)
    assert not record["left_out"]


def test_times_fit_together(record: dict[str, Any]) -> None:
    for row in record["asks"]:
        timings = row["timings"]
        assert 0 < timings["first_token"] <= timings["total"]
        if row["first"] is not None:
            assert timings["first_token"] <= row["first"] + 1e-3  # what is seen from outside includes the start
            assert row["first"] <= row["wall"]
        assert 0 < row["answer_tokens"] <= 4


def test_only_a_fresh_process_imports_and_loads(record: dict[str, Any]) -> None:
    spent: dict[str, list[float]] = {"fresh": [], "resident": []}
    for row in record["asks"]:
        spent[row["process"]].append(row["timings"].get("import", 0) + row["timings"].get("load", 0))
    assert max(spent["resident"]) < min(spent["fresh"])


def test_it_is_said_how_the_cache_was_emptied(record: dict[str, Any]) -> None:
    for row in record["asks"]:
        assert row["cache"] in ({"drop_caches", "posix_fadvise"} if row["state"] == "cold" else {"filled"})


def test_the_whole_cache_is_more_to_read_than_what_is_retrieved(record: dict[str, Any]) -> None:
    read = {(row["method"], row["state"]): row["bytes_read"] for row in record["asks"] if row["process"] == "fresh"}
    for state in ("cold", "warm"):
        assert read["hybrid", state] < read["full", state]
        assert read["stock", state] == 0


def test_reading_and_decoding_stand_beside_the_stock_model(record: dict[str, Any]) -> None:
    decode, read = record["decode"], record["read"]
    for rates in (decode["tokens_per_second"], decode["stock_tokens_per_second"], read["tokens_per_second"],
                  read["stock_tokens_per_second"], read["stock_full_tokens_per_second"]):  # fmt: skip
        assert len(rates) == ROUNDS
        assert min(rates) > 0
    assert read["tokens"] == 1024
    assert record["ingest"]["tokens"] == record["document"]["tokens"]
    assert record["machine"]["versions"]["torch"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--doc", "handbook", "--synthetic-model", "qwen3-4b"], 2, "--doc"),
        (["--synthetic-model", "gpt-2"], 2, "gpt-2"),
        (["--policy", "oracle"], 2, "no policy"),
        (["--picture", "a.gif"], 2, ".gif"),
        (["--doc", "absent"], 4, "no document"),
        (["no-such-file.txt"], 3, "no such file"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], code: int, words: str, library: Sandbox, tiny: Path) -> None:
    model = [] if "--synthetic-model" in arguments else ["--model", str(tiny)]
    done = library.run("bench", "speed", *arguments, *model)
    assert (done.code, done.out) == (code, "")
    assert words in done.err.splitlines()[0]
