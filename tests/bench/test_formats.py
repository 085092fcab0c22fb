"""Files of every format, a few rows each and made up here: what becomes of their fields, and what is refused."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from actqkv_cli.bench import formats
from actqkv_cli.bench.examples import Example
from actqkv_cli.bench.formats import read_examples
from actqkv_cli.bench.metrics import score
from actqkv_cli.errors import UsageError


def written(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def marked(example: Example) -> list[str]:
    return [example.context[start:end] for start, end in example.spans]


def longbench(**fields: Any) -> dict[str, Any]:
    row = {"input": "Who built it?", "context": "Ada built it.", "answers": ["Ada", "Ada King"], "length": 3}
    return row | {"dataset": "hotpotqa", "language": "en", "all_classes": None, "_id": "x1"} | fields


def infinite(**fields: Any) -> dict[str, Any]:
    return {"id": 3, "context": "Ada built it.", "input": "Who?", "answer": ["Ada"], "options": []} | fields


def ruler(question: str, outputs: list[str], **fields: Any) -> dict[str, Any]:
    prompt = f"Some special magic numbers are hidden.\nWhat a text.\nThe one for ox is: 5512345.\n{question}"
    return {"index": 4, "input": prompt, "outputs": outputs, "length": 99} | fields


PLAIN = {"context": "Ada built it.", "question": "Who?", "answers": ["Ada"]}


class TestLongBench:
    def test_fields(self, tmp_path: Path) -> None:
        (example,) = read_examples(written(tmp_path / "hotpotqa.jsonl", longbench()))
        assert (example.id, example.task, example.context) == ("x1", "hotpotqa", "Ada built it.")
        assert example.answers == ("Ada", "Ada King")
        assert (example.metric, example.max_tokens) == ("qa_f1", 32)
        assert "Who built it?" in example.question
        assert not example.classes

    def test_classes(self, tmp_path: Path) -> None:
        row = longbench(dataset="trec", all_classes=["Food", "Sport"], answers=["Food"])
        (example,) = read_examples(written(tmp_path / "trec.jsonl", row))
        assert (example.classes, example.metric) == (("Food", "Sport"), "classification")

    @pytest.mark.parametrize("dataset", ["hotpotqa", "hotpotqa_e"])
    def test_longbench_e_is_a_task_of_its_own(self, tmp_path: Path, dataset: str) -> None:
        (example,) = read_examples(written(tmp_path / "hotpotqa_e.jsonl", longbench(dataset=dataset)))
        assert (example.task, example.metric, example.max_tokens) == ("hotpotqa_e", "qa_f1", 32)

    def test_braces_in_a_question_stay(self, tmp_path: Path) -> None:
        row = longbench(dataset="repobench-p", input="x = {y}")
        (example,) = read_examples(written(tmp_path / "repobench-p.jsonl", row))
        assert "x = {y}" in example.question

    def test_an_unknown_task_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"line 2.*'poems'"):
            read_examples(written(tmp_path / "a.jsonl", longbench(), longbench(dataset="poems")))


class TestInfiniteBench:
    def test_the_task_is_the_files_name(self, tmp_path: Path) -> None:
        row = infinite(context="Hay. The pass key is 71432. 71432 is the pass key. Hay.", answer="71432")
        (example,) = read_examples(written(tmp_path / "passkey.jsonl", row))
        assert (example.id, example.task, example.metric, example.max_tokens) == ("3", "passkey", "first_integer", 6)
        assert example.prefix == "The pass key is"
        assert marked(example) == ["71432", "71432"]
        assert example.depth == example.context.index("71432") / len(example.context)

    @pytest.mark.parametrize("answer", ["a bay", ["a bay"], ["a bay", "B"]])
    def test_an_options_letter_is_an_answer_too(self, tmp_path: Path, answer: Any) -> None:
        row = infinite(options=["a ship", "a bay", "a man", "a dog"], answer=answer)
        (example,) = read_examples(written(tmp_path / "longbook_choice_eng.jsonl", row))
        assert example.answers == ("a bay", "B")
        assert "A. a ship\nB. a bay\nC. a man\nD. a dog" in example.question

    def test_an_answer_that_is_no_option_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="line 1"):
            read_examples(written(tmp_path / "code_debug.jsonl", infinite(options=["f", "g", "h", "i"], answer="j")))

    @pytest.mark.parametrize("answer", [[4, 8], [[4, 8]], ["4", "8"]])
    def test_numbers_become_text(self, tmp_path: Path, answer: Any) -> None:
        (example,) = read_examples(written(tmp_path / "math_calc.jsonl", infinite(answer=answer)))
        assert example.answers == ("4", "8")

    def test_another_name_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="'mine'"):
            read_examples(written(tmp_path / "mine.jsonl", infinite()))


class TestRuler:
    ASKED = "What is the special magic number for ox mentioned in the provided text?"

    @pytest.mark.parametrize("name", ["niah_single_1/validation.jsonl", "4096/niah_single_1.jsonl"])
    def test_the_question_stands_behind_the_context(self, tmp_path: Path, name: str) -> None:
        row = ruler(self.ASKED, ["5512345"], answer_prefix=" The special magic number for ox is")
        (example,) = read_examples(written(tmp_path / name, row))
        assert (example.id, example.task, example.question) == ("4", "niah_single_1", self.ASKED)
        assert example.context.endswith("is: 5512345.")
        assert (example.metric, example.max_tokens) == ("string_match_all", 128)
        assert example.prefix == "The special magic number for ox is"
        assert marked(example) == ["5512345"]
        assert example.depth is not None

    def test_an_answer_begun_in_the_prompt_is_the_prefix(self, tmp_path: Path) -> None:
        row = ruler(f"{self.ASKED} The special magic number for ox is", ["5512345"])
        (example,) = read_examples(written(tmp_path / "niah_single_2" / "validation.jsonl", row))
        assert (example.question, example.prefix) == (self.ASKED, "The special magic number for ox is")

    @pytest.mark.parametrize(
        ("task", "question", "metric", "tokens"),
        [
            ("vt", "Question: Find all variables that are assigned the value 7.", "string_match_all", 30),
            ("cwe", "Question: What are the 10 most common words?", "string_match_all", 120),
            ("fwe", "Question: What are the three most frequent words?", "string_match_all", 50),
            ("qa_1", "Answer the question based on the documents.\n\nQuestion: Who?", "string_match_part", 32),
        ],
    )
    def test_the_other_tasks(self, tmp_path: Path, task: str, question: str, metric: str, tokens: int) -> None:
        row = ruler(f"{question} Answer:", ["a", "b"])
        (example,) = read_examples(written(tmp_path / task / "validation.jsonl", row))
        assert (example.question, example.prefix) == (question, "Answer:")
        assert (example.metric, example.max_tokens) == (metric, tokens)

    def test_the_last_question_of_a_prompt_with_an_example_is_asked(self, tmp_path: Path) -> None:
        row = ruler("Question: One? Answer: a\nThe text.\nQuestion: Two? Answer:", ["b"])
        (example,) = read_examples(written(tmp_path / "vt" / "validation.jsonl", row))
        assert example.question == "Question: Two?"
        assert example.context.endswith("Question: One? Answer: a\nThe text.")

    @pytest.mark.parametrize(("name", "reason"), [("mine.jsonl", "niah_single_1"), ("vt/a.jsonl", "Question:")])
    def test_what_is_not_rulers_is_refused(self, tmp_path: Path, name: str, reason: str) -> None:
        with pytest.raises(UsageError, match=reason):
            read_examples(written(tmp_path / name, ruler("no question", ["a"])))


class TestLEval:
    ROW: dict[str, Any] = {  # noqa: RUF012
        "input": "The document.",
        "instructions": ["Who?", "When?"],
        "outputs": ["Ada King", "in May of that year"],
        "source": "here",
        "evaluation": "f1",
    }

    def test_one_example_for_each_instruction(self, tmp_path: Path) -> None:
        first, second = read_examples(written(tmp_path / "natural_question.jsonl", self.ROW))
        assert (first.context, second.context) == ("The document.", "The document.")
        assert (first.answers, second.answers) == (("Ada King",), ("in May of that year",))
        assert "Who?" in first.question
        assert "2 words" in first.instruction
        assert "5 words" in second.instruction
        assert (first.task, first.metric, first.max_tokens) == ("natural_question", "qa_f1", 512)

    @pytest.mark.parametrize(
        ("name", "evaluation", "metric"),
        [
            ("tpo", "exam", "exam_choice"),
            ("topic_retrieval_longchat", "exam", "exam"),
            ("tv_show_summ", "rouge", "rougeL"),
        ],
    )
    def test_the_task_or_else_the_evaluation_tells_the_metric(
        self, tmp_path: Path, name: str, evaluation: str, metric: str
    ) -> None:
        examples = read_examples(written(tmp_path / f"{name}.jsonl", self.ROW | {"evaluation": evaluation}))
        assert {example.metric for example in examples} == {metric}

    def test_what_only_a_judge_can_score_is_left_out(self, tmp_path: Path) -> None:
        rows = [self.ROW | {"evaluation": "LLM"}, self.ROW, self.ROW | {"evaluation": "human"}]
        assert len(read_examples(written(tmp_path / "a.jsonl", *rows))) == 2

    def test_an_instruction_without_output_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="line 1"):
            read_examples(written(tmp_path / "a.jsonl", self.ROW | {"outputs": ["Ada King"]}))


class TestSquad:
    def test_answers_are_where_the_file_says(self, tmp_path: Path) -> None:
        context = "May came. In May, Ada built it."
        answers = [{"text": "May", "answer_start": 13}, {"text": "In May", "answer_start": 10}]
        unanswerable = {"id": "b", "question": "Why?", "answers": [], "is_impossible": True}
        asked = {"id": "a", "question": "When?", "answers": [*answers, answers[0]]}
        data = {
            "version": "2",
            "data": [{"title": "t", "paragraphs": [{"context": context, "qas": [asked, unanswerable]}]}],
        }
        path = tmp_path / "dev-v2.0.json"
        path.write_text(json.dumps(data, indent=2))
        (example,) = read_examples(path)
        assert (example.id, example.task, example.answers, example.metric) == ("a", "squad", ("May", "In May"), "qa_f1")
        assert example.spans == ((13, 16), (10, 16))
        assert marked(example) == ["May", "In May"]


class TestLostInTheMiddle:
    def test_answers_are_looked_for_in_the_gold_passage_only(self, tmp_path: Path) -> None:
        passages = [
            {"title": "One", "text": "Ada is here.", "isgold": False},
            {"title": "Two", "text": "ADA built it, Ada did.", "isgold": True},
        ]
        row = {"question": "who built it", "answers": ["Ada"], "ctxs": passages}
        (example,) = read_examples(written(tmp_path / "nq.jsonl", row))
        assert example.context == "One. Ada is here.\n\nTwo. ADA built it, Ada did."
        assert marked(example) == ["ADA", "Ada"]
        assert (example.metric, example.answers) == ("best_subspan_em", ("Ada",))

    def test_a_gold_passage_without_the_answer_is_the_span(self, tmp_path: Path) -> None:
        passages = [
            {"title": "One", "text": "Here.", "isgold": True},
            {"title": "Two", "text": "There.", "isgold": False},
        ]
        row = {"question": "who", "answers": ["Ada"], "ctxs": passages}
        (example,) = read_examples(written(tmp_path / "nq.jsonl", row))
        assert marked(example) == ["One. Here."]

    def test_a_key_and_its_value(self, tmp_path: Path) -> None:
        # The first value equals the key that is asked, and the last the value: neither place is the one.
        records = [["k1", "k2"], ["k2", "v2"], ["k3", "v2"]]
        (example,) = read_examples(
            written(tmp_path / "kv.jsonl", {"ordered_kv_records": records, "key": "k2", "value": "v2"})
        )
        assert json.loads(example.context) == dict(records)
        assert marked(example) == ["v2"]
        assert example.context[: example.spans[0][0]].endswith('"k2": "')
        assert "k2" in example.question

    def test_a_packed_file_is_unpacked(self, tmp_path: Path) -> None:
        path = written(tmp_path / "plain.jsonl", PLAIN)
        packed = tmp_path / "plain.jsonl.gz"
        packed.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        assert read_examples(packed) == read_examples(path)


class TestPlain:
    def test_fields(self, tmp_path: Path) -> None:
        first, second = read_examples(written(tmp_path / "mine.jsonl", PLAIN, PLAIN | {"pages": [3, 4]}))
        assert (first.task, first.context, first.question, first.answers) == ("mine", "Ada built it.", "Who?", ("Ada",))
        assert (first.pages, second.pages) == ((), (3, 4))
        assert first.id != second.id

    def test_a_document_of_the_library_in_place_of_a_context(self) -> None:
        path = Path(__file__).parents[2] / "sample_docs" / "questions.jsonl"
        examples = read_examples(path)
        assert len(examples) == len(path.read_text(encoding="utf-8").splitlines())
        assert all(example.document and example.pages and not example.context for example in examples)

    def test_only_a_newline_ends_a_line(self, tmp_path: Path) -> None:
        text = "one\u2028two\x85three"
        (example,) = read_examples(written(tmp_path / "mine.jsonl", PLAIN | {"context": text}))
        assert example.context == text

    def test_empty_lines_are_passed_over(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.jsonl"
        path.write_text(f"\n{json.dumps(PLAIN)}\n\n")
        assert len(read_examples(path)) == 1


class TestRefused:
    @pytest.mark.parametrize(
        ("bad", "reason"),
        [
            ("{", "not JSON"),
            ("[]", "no format"),
            ('{"question": "Who?"}', "no format"),
            (json.dumps(PLAIN | {"answers": []}), "answer"),
            (json.dumps(PLAIN | {"answers": None}), "answer"),
            (json.dumps(PLAIN | {"context": 7}), "context"),
            (json.dumps(PLAIN | {"context": " "}), "context"),
            (json.dumps(PLAIN | {"pages": ["three"]}), "three"),
        ],
    )
    def test_a_bad_line_is_named(self, tmp_path: Path, bad: str, reason: str) -> None:
        path = tmp_path / "mine.jsonl"
        path.write_text(f"{json.dumps(PLAIN)}\n{bad}\n")
        with pytest.raises(UsageError, match=f"line 2.*{reason}") as error:
            read_examples(path)
        assert "\n" not in error.value.message
        assert error.value.hint

    @pytest.mark.parametrize("text", ["", "\n\n", '{"data": []}'])
    def test_a_file_without_questions(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "mine.jsonl"
        path.write_text(text)
        with pytest.raises(UsageError, match="no questions"):
            read_examples(path)

    @pytest.mark.parametrize(
        "content", [b"\xff\xfe", gzip.compress(b"a" * 999, mtime=0)[:30], gzip.compress(b"a" * 99, mtime=0)[:-5]]
    )
    def test_a_damaged_file(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "mine.jsonl"
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"mine\.jsonl"):
            read_examples(path)

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="cannot read"):
            read_examples(tmp_path / "mine.jsonl")

    def test_the_same_id_twice(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="same id"):
            read_examples(written(tmp_path / "hotpotqa.jsonl", longbench(), longbench()))


def test_every_task_has_a_metric_that_finds_its_own_answer() -> None:
    letter, pairs = ("B", ("B",)), {"code_debug": ("B. load", ("load", "B")), "exam_judge": ("True", ("True",))}
    pairs |= {"exam_choice": letter, "exam_choices": letter}
    tables = formats.LONGBENCH | formats.INFINITEBENCH | formats.RULER | formats.LEVAL
    for task in (*tables.values(), formats.SQUAD, formats.NQ_OPEN, formats.LOST_KEY, formats.PLAIN):
        right, answers = pairs.get(task.metric, ("7", ("7",)))
        example = Example("1", "t", "c", "q", answers, task.metric, task.max_tokens, classes=answers)
        assert score(task.metric, right, example) == pytest.approx(1, abs=1e-6), task
