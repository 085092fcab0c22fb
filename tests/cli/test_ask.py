"""actqkv ask through real processes: what goes to which stream, and what it refuses."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sandbox import Done, Sandbox, finish, flip

from actqkv_cli.store import jsonfile

QUESTION = "Wer stand im «Café» an der Küste?"
ASK = ["--doc", "Küste — Café.txt", "--device", "cpu", "--budget", "1024", "--max-tokens", "24", "--policy", "heads"]


@pytest.fixture(scope="module")
def text(library: Sandbox) -> Done:
    return library.with_env(NO_COLOR="1").run("ask", QUESTION, *ASK)


@pytest.fixture(scope="module")
def whole(library: Sandbox) -> dict[str, Any]:
    """The same with --json, in the plainest locale, the question from stdin."""
    box = library.with_env(LC_ALL="C")
    done = box.run("ask", "-", *ASK, "--json", stdin=QUESTION + "\n")
    assert done.code == 0
    result: dict[str, Any] = done.json
    return result


def test_stdout_is_only_the_answer(text: Done, whole: dict[str, Any]) -> None:
    assert text.code == 0
    assert text.out == whole["answer"] + "\n"
    assert whole["answer"] == whole["answer"].strip() != ""


def test_stderr_has_sources_and_times_and_no_control_characters(text: Done) -> None:
    assert "Sources:\n  1. Küste — Café.txt, page 1 (" in text.err
    assert "Kranich" in text.err
    assert re.search(r"first token after \d+\.\d\d s .*total \d+\.\d\d s\n$", text.err)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text.err)
    assert max(map(len, text.err.splitlines())) > 100  # nothing is wrapped where there is no terminal


def test_json_carries_all_that_is_known(whole: dict[str, Any], library: Sandbox) -> None:
    assert whole["document"] == library.folder("kuste").name
    assert {"answer", "sources", "model", "usage", "timings", "budget", "seed", "version", "policy"} <= whole.keys()
    assert (whole["budget"], whole["seed"], whole["policy"]) == (1024, 0, "heads")
    assert whole["timings"].keys() == {"import", "load", "index", "retrieve", "first_token", "total"}
    assert all(seconds > 0 for seconds in whole["timings"].values())
    assert whole["timings"]["first_token"] < whole["timings"]["total"]
    usage = whole["usage"]
    assert usage["bytes_read"].keys() == {"blocks", "index", "other"}
    assert 0 < usage["answer_tokens"] <= 24
    for source in whole["sources"]:
        stored = (library.folder("kuste") / "text.txt").read_text(encoding="utf-8")
        assert source["text"] == stored[source["start"] : source["end"]] != ""
        assert (source["document"], source["page"]) == ("Küste — Café.txt", 1)
        assert 0 < source["score"] <= 1


def test_jsonl_streams_the_same(library: Sandbox, whole: dict[str, Any]) -> None:
    done = library.run("ask", QUESTION, *ASK, "--jsonl", "--explain")
    assert done.code == 0
    events = [json.loads(line) for line in done.out.splitlines()]
    kinds = [event["type"] for event in events]
    assert kinds == sorted(kinds, key=["token", "source", "done"].index)
    assert kinds.count("done") == 1
    assert "".join(event["text"] for event in events if event["type"] == "token") == whole["answer"]
    assert events[-1]["answer"] == whole["answer"]
    assert len(events[-1]["explain"]["blocks_per_layer"]) == 2
    assert [{**event, "type": ""} for event in events if event["type"] == "source"] == [
        {**source, "type": ""} for source in whole["sources"]
    ]
    assert done.err == ""


def test_quiet_is_quiet_and_sampling_follows_the_seed_whatever_the_bytes_of_a_question(library: Sandbox) -> None:
    draw = ["ask", "-", *ASK, "--temperature", "1.5", "--top-p", "0.95", "--seed", "7", "-q"]
    first, again = (library.run(*draw, stdin=b"Who \xff\xfe stood there?\n") for _ in range(2))
    assert (first.code, first.err) == (0, "")
    assert first == again


def test_a_reader_that_goes_away_is_no_failure(library: Sandbox) -> None:
    process = library.start("ask", QUESTION, *ASK, "--max-tokens", "200")
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.stdout.close()
    process.stdout = None
    done = finish(process)
    assert (done.code, done.err) == (0, "")


def test_exit_2_an_unknown_policy(library: Sandbox) -> None:
    done = library.run("ask", QUESTION, *ASK, "--policy", "guess", "--json")
    assert done.code == done.json["error"]["exit_code"] == 2
    assert "'guess'" in done.json["error"]["message"]
    assert "heads" in done.json["error"]["hint"]


def test_exit_5_another_model(library: Sandbox, tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in tiny.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    flip(other / "model.safetensors", -5, 0x80)
    done = library.run("ask", QUESTION, *ASK, "--model", other, "--json")
    assert done.code == done.json["error"]["exit_code"] == 5
    assert "weights is" in done.json["error"]["message"]
    assert "--model" in done.err or "ingest" in done.err

    # A changed tokenizer under the old name: verify tells without loading the model.
    box = library.copy(tmp_path / "copy")
    settings = json.loads((other / "tokenizer_config.json").read_text())
    (other / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes())
    (other / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "{{ messages }}"}))
    (other.rename(tmp_path / "tiny")).touch()
    for path in box.home.glob("*/manifest.json"):
        rewrite(path, lambda record: record["model"].update(name=str(tmp_path / "tiny")))
    done = box.run("verify", "--json")
    assert done.code == done.json["error"]["exit_code"] == 5
    assert done.json["damaged"] == []
    assert len(done.json["of_another_model"]) == 3
    assert all("chat_template" in told for told in done.json["models"].values())


def rewrite(manifest: Path, change: Any) -> None:
    """Changes a manifest as a program of ours would: with a checksum that is right."""
    record, right = jsonfile.read(manifest)
    assert right
    change(record)
    manifest.write_bytes(jsonfile.encode(record))


def test_exit_5_a_store_of_another_format(library: Sandbox, tmp_path: Path) -> None:
    box = library.copy(tmp_path)
    rewrite(box.folder("log") / "manifest.json", lambda record: record.update(format=2))
    for args in (["ask", "Who?", "--doc"], ["show"]):
        done = box.run(*args, box.folder("log").name, "--json")
        assert done.code == done.json["error"]["exit_code"] == 5
        assert "format 2" in done.err


def test_exit_6_damage(library: Sandbox, tmp_path: Path) -> None:
    box = library.copy(tmp_path)
    handbook, log, other = (box.folder(name) for name in ("handbook", "log", "kuste"))
    offset = int.from_bytes((handbook / "kv-00000.safetensors").read_bytes()[:8], "little") + 8
    flip(handbook / "kv-00000.safetensors", offset + 3)  # in the first block, which every answer reads
    done = box.run("ask", "Who?", "--doc", handbook.name, "--json")
    assert done.code == done.json["error"]["exit_code"] == 6
    assert "kv-00000.safetensors: block 0 of layer 0" in done.json["error"]["message"]
    assert "ingest it again" in done.json["error"]["hint"]

    cut = log / "kv-00000.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    done = box.run("verify", "--json")
    assert done.code == done.json["error"]["exit_code"] == 6
    assert set(done.json["damaged"]) == {handbook.name, log.name}
    assert done.json["documents"][other.name] == []
    assert "bytes long instead of" in done.json["documents"][log.name][0]

    flip(other / "manifest.json", 100)
    for args in (["ask", "Who?", "--doc"], ["show"], ["verify"]):
        done = box.run(*args, other.name)
        assert done.code == 6
        assert "manifest.json" in done.err + done.out
        assert done.out == "" or args == ["verify"]
    assert box.run("ls", "--json").json["documents"][0]["error"]
    assert f"{other.name}  -" in box.run("ls").out
    assert box.run("rm", other.name, "--yes").code == 0


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        ('RuntimeError("DefaultCPUAllocator: can\'t allocate memory: you tried to allocate 5 bytes")', 7, "--budget"),
        ("OSError(28, 'No space left on device', 'somewhere')", 8, "somewhere"),
        ("ZeroDivisionError('an oversight')", 1, "ACTQKV_DEBUG"),
    ],
)
def test_what_can_happen_anywhere(library: Sandbox, error: str, code: int, told: str) -> None:
    """A failure in the midst of an answer, put there by a module that stands in for ours."""
    script = (
        "import sys, types\n"
        "module = types.ModuleType('actqkv_cli.store.library')\n"
        "module.__getattr__ = lambda name: fail if name == 'find' else type(name, (), {})\n"
        f"def fail(*_):\n    raise {error}\n"
        "sys.modules['actqkv_cli.store.library'] = module\n"
        "sys.argv = ['actqkv', 'ask', 'Who?', '--json']\n"
        "from actqkv_cli.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], env=library.env, capture_output=True, text=True)
    assert done.returncode == json.loads(done.stdout)["error"]["exit_code"] == code
    assert told in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS")
def test_exit_7_too_little_memory(library: Sandbox) -> None:
    import resource

    def limit() -> None:  # with some 655 MB it answers; close to that, glibc itself may give up
        resource.setrlimit(resource.RLIMIT_AS, (620 << 20, 620 << 20))

    done = library.run("ask", "Who?", "--json", preexec_fn=limit)
    assert done.code == done.json["error"]["exit_code"] == 7
    assert done.json["error"]["hint"]
