"""Many questions at once, several documents at once, and conversations, through real processes."""

import json
from pathlib import Path

import pytest
from sandbox import Sandbox

CPU = ["--device", "cpu", "--max-tokens", "12"]
QUESTIONS = [
    "Who keeps the light?",
    "Wer stand im Café?",
    "When was the bell cast, and who paid for it?",
    "Why?",
]


def asked_alone(box: Sandbox, question: str, *args: str) -> dict[str, object]:
    done = box.run("ask", question, *CPU, *args, "--json")
    assert done.code == 0, done.err
    result: dict[str, object] = done.json
    return result


def test_a_file_of_questions_is_answered_in_order_as_each_alone(served: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "questions.txt"
    path.write_text("\n\n".join(QUESTIONS) + "\n", encoding="utf-8")
    done = served.run("ask", "-f", path, "--doc", "handbook", *CPU)
    assert (done.code, done.err) == (0, "")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["question"] for line in lines] == QUESTIONS
    for line in (lines[0], lines[2]):
        alone = asked_alone(served, line["question"], "--doc", "handbook")
        assert line["answer"] == alone["answer"]
        assert line["sources"] == alone["sources"]


def test_json_lines_come_back_whole_beside_their_answers(served: Sandbox, tmp_path: Path) -> None:
    """Also the fields that are called as ours are."""
    path = tmp_path / "questions.jsonl"
    own = {"answer": "Marisol", "model": "none", "document": 7, "input": [1], "sources": None, "explain": {}}
    rows = [{"id": number, "question": f" {question}\n", **own} for number, question in enumerate(QUESTIONS * 3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = served.run("ask", "--file", path, "--doc", "handbook", "--device", "cpu", "--max-tokens", "3", "--explain")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["input"] for line in lines] == rows
    assert [line["question"] for line in lines] == QUESTIONS * 3
    assert {line["document"] for line in lines} == {served.folder("handbook").name}
    assert all(len(line["explain"]["blocks_per_layer"]) == 2 for line in lines)
    assert len({line["answer"] for line in lines if line["question"] == QUESTIONS[0]}) == 1


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("none.txt", " \n\n", "no questions"),
        ("odd.jsonl", '{"question": "Who?"}\n{"q": "Who?"}\n', "line 2"),
        ("cut.jsonl", '{"question": "Who', "not JSON"),
        ("missing.txt", None, "cannot read"),
    ],
)
def test_a_bad_file_of_questions_is_refused_whole(
    served: Sandbox, tmp_path: Path, name: str, content: str | None, told: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    done = served.run("ask", "-f", tmp_path / name)
    assert (done.code, done.out) == (2, "")
    assert told in done.err
    assert served.run("ask", "Who?", "-f", tmp_path / name).code == 2


def test_several_documents_are_asked_as_one(served: Sandbox) -> None:
    two = asked_alone(served, QUESTIONS[1], "--doc", "handbook", "--doc", "Küste — Café.txt", "--doc", "handbook.md")
    names = {path.name for path in served.home.iterdir() if not path.name.startswith(".")}
    assert len(two["documents"]) == 2  # type: ignore[arg-type]
    assert "document" not in two
    everything = asked_alone(served, QUESTIONS[1], "--all")
    assert set(everything["documents"]) == names  # type: ignore[call-overload]
    for source in everything["sources"]:  # type: ignore[attr-defined]
        text = (served.home / source["id"] / "text.txt").read_text(encoding="utf-8")
        assert source["text"] == text[source["start"] : source["end"]]
    assert served.run("ask", "Who?", "--all", "--doc", "handbook").code == 2


def test_a_conversation_over_a_pipe(served: Sandbox) -> None:
    lines = [QUESTIONS[0], "/sources", "And when?", "/budget 700", "/policy streaming", "Why?", "/policy oracle",
             "/frobnicate", "/doc Küste", "Wer?", "/doc", "/quit", "never asked"]  # fmt: skip
    done = served.run("chat", "--doc", "handbook", *CPU, stdin="\n".join(lines) + "\n")
    assert done.code == 0
    first = asked_alone(served, QUESTIONS[0], "--doc", "handbook")
    answers = done.out.split("\n")
    assert answers[0] == first["answer"]
    assert len(answers) == 5  # four, each with a line's end
    assert (
        answers[3]
        == asked_alone(served, "Wer?", "--doc", "Küste", "--policy", "streaming", "--budget", "700")["answer"]
    )
    assert f"1. {first['sources'][0]['document']}" in done.err  # type: ignore[index]
    assert "budget: 700 tokens" in done.err
    assert "no policy is called 'oracle'" in done.err
    assert "there is no command /frobnicate" in done.err
    assert served.folder("kuste").name in done.err


def test_a_conversation_ends_with_its_input_and_refuses_what_ask_refuses(served: Sandbox, box: Sandbox) -> None:
    assert served.run("chat", *CPU, stdin="").code == 0
    assert box.run("chat", stdin="Who?\n").code == 4
    assert served.run("chat", "--doc", "nowhere", stdin="Who?\n").code == 4
