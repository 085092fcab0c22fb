"""What needs no model: help, settings, bad calls, bad files, an empty library."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from sandbox import Sandbox

COMMANDS = ["ingest", "ask", "chat", "ls", "show", "rm", "verify", "worker", "serve", "plan", "bench", "models"]
HEAVY = {"torch", "transformers", "pydantic", "numpy", "rich", "pypdf"}


def imported(box: Sandbox, *args: str) -> set[str]:
    """The heavy modules that a command imports."""
    script = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('LOADED', *({HEAVY!r} & set(sys.modules)), file=sys.stderr))\n"
        f"sys.argv = ['actqkv', *{args!r}]\n"
        "from actqkv_cli.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], env=box.env, capture_output=True, text=True, check=True)
    return set(done.stderr.split("LOADED", 1)[1].split())


def test_help_and_version_answer_at_once(box: Sandbox) -> None:
    for args in (["--version"], ["--help"], *([command, "--help"] for command in COMMANDS)):
        began = time.perf_counter()
        done = box.run(*args)
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith("actqkv 0." if args == ["--version"] else "Usage: ")
        assert time.perf_counter() - began < 2  # 0.2 s where nothing else runs
    assert not imported(box, "--version") | imported(box, "--help")
    assert imported(box, "ask", "--help") <= {"pydantic"}  # Typer itself checks options with it


def test_without_a_command_there_is_help(box: Sandbox) -> None:
    done = box.run()
    assert (done.code, done.err) == (0, "")
    assert all(command in done.out for command in COMMANDS)


def test_asking_imports_no_transformers(library: Sandbox) -> None:
    """It takes longer than torch."""
    heavy = imported(library, "ask", "Who?", "--keep-alive", "0", "--max-tokens", "2")
    assert "torch" in heavy
    assert "transformers" not in heavy


@pytest.mark.parametrize("args", [["ls"], ["ls", "--json"]])
def test_an_empty_library_is_listed_without_torch(box: Sandbox, args: list[str]) -> None:
    assert not imported(box, *args) & {"torch", "transformers"}
    done = box.run(*args)
    assert done.code == 0
    if args == ["ls"]:
        assert done.out == ""
        assert "actqkv ingest FILE" in done.err
    else:
        assert done.json == {"home": str(box.home), "documents": []}


def test_a_flag_goes_before_the_environment_that_before_the_file_that_before_the_default(
    box: Sandbox, tmp_path: Path
) -> None:
    def home(*args: str, **more: str) -> str:
        found = box.with_env(**more).run("ls", "--json", *args).json["home"]
        return Path(found).name

    assert home(ACTQKV_HOME="", XDG_DATA_HOME=str(tmp_path / "data")) == "actqkv"
    box.config.parent.mkdir(parents=True)
    box.config.write_text(f'home = "{tmp_path}/from-file"\n')
    assert home(ACTQKV_HOME="") == "from-file"
    assert home(ACTQKV_HOME=str(tmp_path / "from-environment")) == "from-environment"
    assert home("--home", str(tmp_path / "from-flag")) == "from-flag"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("bugdet = 4096", "bugdet"),
        ("budget = 'many'", "budget"),
        ("budget = 3", "budget"),
        ("positions = 'sideways'", "positions"),
        ("budget = ", "config.toml"),
    ],
)
def test_a_mistake_in_the_config_file_is_named(box: Sandbox, line: str, told: str) -> None:
    box.config.parent.mkdir(parents=True)
    box.config.write_text(line + "\n")
    done = box.run("ls")
    assert (done.code, done.out) == (2, "")
    assert told in done.err
    assert str(box.config) in done.err


USAGE = {
    "no such command": (["frobnicate"], {}, "frobnicate"),
    "a bad flag": (["ask", "x", "--budgte", "5"], {}, "--budgte"),
    "a bad number": (["ask", "x", "--budget", "many"], {}, "--budget"),
    "a number out of range": (["ask", "x", "--budget", "5"], {}, "budget"),
    "a document too short to time": (["bench", "decode", "--tokens", "10"], {}, "--tokens"),
    "no such shape": (["bench", "decode", "--synthetic-model", "gpt-9"], {}, "llama-3.1-8b"),
    "a window of no whole blocks": (["ingest", "x", "--window", "100"], {}, "2048"),
    "a window that divides no segment": (["ingest", "x"], {"ACTQKV_WINDOW": "1536"}, "window"),
    "a bad choice": (["ingest", "x", "--positions", "sideways"], {}, "positions"),
    "a bad value in the environment": (["ask", "x"], {"ACTQKV_TEMPERATURE": "warm"}, "temperature"),
    "no question": (["ask"], {}, "question"),
    "an empty question": (["ask", "  \n "], {}, "question is empty"),
    "no file": (["ingest"], {}, "paths"),
    "a name without stdin": (["ingest", "x.txt", "--name", "y"], {}, "--name"),
    "stdin without a name": (["ingest", "-"], {}, "--name"),
    "stdin and a file": (["ingest", "-", "x.txt", "--name", "y"], {}, "stdin"),
}


@pytest.mark.parametrize("case", USAGE)
def test_exit_2_a_wrong_call(box: Sandbox, case: str) -> None:
    args, more, told = USAGE[case]
    done = box.with_env(**more).run(*args, "--json")
    assert done.code == done.json["error"]["exit_code"] == 2
    assert done.json["error"]["kind"] == "usage"
    assert told in done.json["error"]["message"] + done.json["error"]["hint"]
    assert done.err.startswith(f"error: {done.json['error']['message']}\n")


def test_without_json_an_error_leaves_stdout_empty(box: Sandbox) -> None:
    done = box.run("ask", "x", "--budget", "5")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: setting budget")
    done = box.run("ask", "x", "--budget", "5", "--jsonl")
    assert done.json["type"] == "error"
    assert done.json["exit_code"] == 2


def test_an_empty_question_on_stdin(box: Sandbox) -> None:
    done = box.run("ask", "-", stdin="\n")
    assert (done.code, done.out) == (2, "")


def pdf_without_text() -> bytes:
    import io

    import pypdf

    writer, buffer = pypdf.PdfWriter(), io.BytesIO()
    for _ in range(3):
        writer.add_blank_page(100, 100)
    writer.write(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("missing.txt", None, "no such file"),
        ("empty.txt", b"", "no text"),
        ("blank.txt", b" \n\t\f\n", "no text"),
        ("binary.txt", bytes(range(256)) * 9, "binary"),
        ("scanned.pdf", "scanned", "pages 1-3"),
        ("cut.pdf", b"%PDF-1.7\n1 0 obj", "not a readable PDF"),
    ],
)
def test_exit_3_an_unreadable_document(box: Sandbox, name: str, content: bytes | str | None, told: str) -> None:
    path = box.root / name
    if content is not None:
        path.write_bytes(pdf_without_text() if isinstance(content, str) else content)
    done = box.run("ingest", path, "--offline", "--json")
    assert done.code == done.json["error"]["exit_code"] == 3
    assert told in done.err
    assert name in done.json["error"]["message"]
    assert not box.home.exists()


def test_exit_3_a_folder_without_documents_and_bad_stdin(box: Sandbox) -> None:
    (box.root / "nothing").mkdir()
    done = box.run("ingest", box.root / "nothing")
    assert (done.code, done.out) == (3, "")
    assert "no documents" in done.err
    done = box.run("ingest", "-", "--name", "n" * 256, stdin="x")
    assert (done.code, done.out) == (2, "")
    done = box.run("ingest", "-", "--name", "noise", stdin=bytes(range(256)) * 9)
    assert (done.code, done.out) == (3, "")
    assert "noise" in done.err


@pytest.mark.parametrize("args", [["ask", "who?"], ["ask", "who?", "--doc", "x"], ["show"], ["rm", "x"]])
def test_exit_4_an_empty_library(box: Sandbox, args: list[str]) -> None:
    done = box.run(*args)
    assert (done.code, done.out) == (4, "")
    assert "empty" in done.err
    assert "actqkv ingest FILE" in done.err
    assert box.run(*args, "--json").json["error"]["kind"] == "no_such_document"


def test_exit_4_verify_of_what_is_not_there(box: Sandbox) -> None:
    assert box.run("verify", "x").code == 4
    assert box.run("verify", "--json").json["documents"] == {}


@pytest.mark.parametrize(
    ("args", "more"),
    [
        (["--offline"], {"HF_HUB_OFFLINE": "0"}),
        ([], {}),
        (["--model", "someone/a-model"], {}),
        (["--model", "someone/a-model", "--offline"], {"HF_HUB_OFFLINE": "0"}),
        ([], {"HF_HUB_OFFLINE": "0", "ACTQKV_OFFLINE": "1"}),
    ],
)
def test_exit_9_a_model_that_is_not_here(box: Sandbox, args: list[str], more: dict[str, str]) -> None:
    path = box.root / "a.txt"
    path.write_text("A text.")
    done = box.with_env(**more).run("ingest", path, *args, "--json")
    assert done.code == done.json["error"]["exit_code"] == 9
    assert "network is off limits" in done.json["error"]["message"]
    assert done.json["error"]["hint"]


def test_exit_2_a_model_that_cannot_be_one(box: Sandbox) -> None:
    path = box.root / "a.txt"
    path.write_text("A text.")
    for spec in (path, box.root / "nowhere", "no model at all"):
        done = box.run("ingest", path, "--model", spec)
        assert (done.code, done.out) == (2, "")
        assert str(spec) in done.err
