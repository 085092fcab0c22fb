"""Files of questions as the long-context benchmarks publish them, read as examples.

A row's fields tell its format. How a task is asked and judged stands in the tables below: metrics and answer lengths
are the benchmarks'; the wording is ours, all of it behind the context, which is read before any question is known.
"""

import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import error as ZlibError

from actqkv_cli.bench.examples import BETWEEN, Example
from actqkv_cli.errors import UsageError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """How a task is asked and judged. question: may name {input} and {options}, and, on lines behind them that say how
    to answer, {words}, the length of the answer; needle: the answers stand in the context word for word, and where
    they do matters."""

    metric: str
    max_tokens: int
    question: str = "{input}"
    prefix: str = ""
    needle: bool = False


CONCISE = "{input}\nAnswer as concisely as you can, without any explanation."
CONCISE_ZH = "{input}\n请只给出答案，越简短越好。"

LONGBENCH = {
    "narrativeqa": Task("qa_f1", 128, CONCISE),
    "qasper": Task(
        "qa_f1", 128, f'{CONCISE} Yes or no will do where it fits; say "unanswerable" if the article does not tell.'
    ),
    "multifieldqa_en": Task("qa_f1", 64, CONCISE),
    "multifieldqa_zh": Task("qa_f1_zh", 64, CONCISE_ZH),
    "hotpotqa": Task("qa_f1", 32, CONCISE),
    "2wikimqa": Task("qa_f1", 32, CONCISE),
    "musique": Task("qa_f1", 32, CONCISE),
    "dureader": Task("rouge_zh", 128, "请根据上文回答问题：{input}"),
    "gov_report": Task("rouge", 512, "Summarize this report on one page."),
    "qmsum": Task("rouge", 512, "{input}\nAnswer from the meeting, in one or a few sentences."),
    "multi_news": Task("rouge", 512, "Summarize all of this news on one page."),
    "vcsum": Task("rouge_zh", 512, "请总结这次会议的内容。"),
    "trec": Task("classification", 64, "Name the type of this question as in the examples above.\n{input}"),
    "triviaqa": Task("qa_f1_first_line", 32, "Answer as in the examples above: the answer and no more.\n\n{input}"),
    "samsum": Task("rouge_first_line", 128, "Summarize this dialogue as in the examples above.\n\n{input}"),
    "lsht": Task("classification", 64, "请仿照上面的例子，判断这则新闻的类别。\n{input}"),
    "passage_count": Task(
        "count", 32, "Some of these paragraphs are repeated. How many different ones are there? Give the number only."
    ),
    "passage_retrieval_en": Task(
        "retrieval", 32, 'Which paragraph is summarized here?\n\n{input}\n\nAnswer like "Paragraph 1".'
    ),
    "passage_retrieval_zh": Task("retrieval", 32, "下面的摘要概括的是哪一段？\n\n{input}\n\n请按“段落1”的格式回答。"),
    "lcc": Task("code_sim", 64, "{input}\nWrite the next line of this code and nothing else."),
    "repobench-p": Task("code_sim", 64, "{input}\nWrite the next line of this code and nothing else."),
}

# passkey and number_string allow too few tokens for more than the number itself: hence their prefixes.
INFINITEBENCH = {
    "passkey": Task("first_integer", 6, prefix="The pass key is", needle=True),
    "number_string": Task("first_integer", 12, prefix="The sequence of digits is", needle=True),
    "kv_retrieval": Task("word", 50, "Give the value of this key in the JSON object.\n{input}", needle=True),
    "longbook_qa_eng": Task("qa_f1", 40, CONCISE),
    "longbook_qa_chn": Task("qa_f1_characters", 40, CONCISE_ZH),
    "longbook_choice_eng": Task(
        "choice", 40, "Question: {input}\n{options}\nAnswer with the letter of the one right option only."
    ),
    "longdialogue_qa_eng": Task(
        "name", 40, 'One name in this script is replaced by "$$MASK$$". Whose is it? Answer with that one name only.'
    ),
    "longbook_sum_eng": Task("rougeLsum", 1200, "Summarize this book."),
    "math_find": Task("math_find", 3),
    "math_calc": Task(
        "math_calc", 30_000, "Give the value of the expression after each of its operations: 4, 8 for 1 + 3 + 4."
    ),
    "code_run": Task("code_run", 5, "{input}\nAnswer with the number only."),
    "code_debug": Task(
        "code_debug", 5, 'Which function has an error put in on purpose?\n{options}\nAnswer like "A. name".'
    ),
}


@dataclass(frozen=True)
class RulerTask(Task):
    """begins: how the last part of the prompt, the question, begins; answer: what stands behind it if the file has
    the answer's beginning in the prompt."""

    begins: str = "\nQuestion: "
    answer: str = " Answer:"


RULER = {
    "niah": RulerTask("string_match_all", 128, needle=True, begins="\nWhat ", answer=" The special magic"),
    "vt": RulerTask("string_match_all", 30),
    "cwe": RulerTask("string_match_all", 120),
    "fwe": RulerTask("string_match_all", 50),
    "qa": RulerTask("string_match_part", 32, begins="\nAnswer the question based on "),
}

# L-Eval: by task; every other one by the row's evaluation. Rows that only a person or a model can judge are left out.
LEVAL = {
    "coursera": Task("exam_choices", 512, "{input}\nAnswer with the letter of each right option only, like A or AB."),
    "quality": Task("exam_choice", 512, "{input}\nAnswer with the letter of the one right option only."),
    "tpo": Task("exam_choice", 512, "{input}\nAnswer with the letter of the one right option only."),
    "gsm100": Task("exam_math", 512, '{input}\nEnd with "The answer is" and the number.'),
    "codeU": Task("exam_code", 512),
    "sci_fi": Task("exam_judge", 512, '{input}\nAnswer "True" or "False" by what the document says.'),
    "exam": Task("exam", 512, "{input}\nGive the answer only."),
    "f1": Task("qa_f1", 512, "{input}\nAnswer in about {words} words."),
    "rouge": Task("rougeL", 512, "{input}\nAnswer in about {words} words."),
}

SQUAD = Task("qa_f1", 32, CONCISE)
NQ_OPEN = Task("best_subspan_em", 100, CONCISE)
LOST_KEY = Task("string_match_part", 100, 'What is the value of the key "{input}" in the JSON object? Give it only.')
PLAIN = Task("string_match_part", 128)

_HINT = (
    "known are the files of LongBench, InfiniteBench, RULER, L-Eval, lost-in-the-middle and SQuAD (.json), "
    "and JSON lines with context (or document), question and answers"
)


def read_examples(path: Path) -> list[Example]:
    """The questions of a benchmark's file; .gz is unpacked.

    The file's name says which task of InfiniteBench or L-Eval it is, its own or its folder's name which one of RULER.
    Raises UsageError, which names the line, for a file that cannot be read, is of no known format, lacks a field, has
    no questions, or has two of the same id.
    """
    examples: list[Example] = []
    for number, row in _rows(path):
        try:
            examples += _reader(row)(row, path, number)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else error
            raise UsageError(f"{path}, line {number}: {reason}", _HINT) from None
    if not examples:
        raise UsageError(f"{path} holds no questions")
    if len({example.id for example in examples}) < len(examples):
        raise UsageError(f"{path} has several questions of the same id")
    return examples


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Numbered JSON values: one for each line that is not empty, or the whole of a .json file."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        # Only a newline ends a line: texts hold other separators that str.splitlines would split at.
        with (gzip.open if packed else open)(path, "rt", encoding="utf-8", newline="\n") as lines:
            whole = path.name.removesuffix(".gz").endswith(".json")
            for number, line in enumerate([lines.read()] if whole else lines, 1):
                if line.strip():
                    try:
                        row = json.loads(line)
                    except ValueError as error:
                        raise UsageError(f"{path}, line {number} is not JSON: {error}", _HINT) from None
                    yield number, row
    except (OSError, EOFError, ZlibError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None


def _longbench(row: Row, path: Path, number: int) -> Iterator[Example]:
    name = _text(row, "dataset").removesuffix("_e")
    if name not in LONGBENCH:
        raise ValueError(f"LongBench has no task {name!r}")
    even = _stem(path).endswith("_e")  # LongBench-E has other questions of the same task
    context, answers, asked = _text(row, "context"), _strings(row["answers"]), _text(row, "input")
    classes = _strings(row["all_classes"]) if row["all_classes"] else ()
    task, name = LONGBENCH[name], f"{name}_e" if even else name
    yield _example(task, name, str(row["_id"]), context, answers, asked=asked, classes=classes)


def _infinitebench(row: Row, path: Path, number: int) -> Iterator[Example]:
    name = _stem(path)
    if name not in INFINITEBENCH:
        raise ValueError(f"InfiniteBench has no task {name!r}: keep the file's own name")
    task, context, asked = INFINITEBENCH[name], _text(row, "context"), _text(row, "input")
    answers, options = _strings(row["answer"]), row.get("options") or []
    if task.metric in ("choice", "code_debug") and len(answers) == 1:
        answers += ("ABCD"[options.index(answers[0])],)
    yield _example(task, name, str(row["id"]), context, answers, asked=asked, options=options)


def _ruler(row: Row, path: Path, number: int) -> Iterator[Example]:
    names = [name for name in (path.parent.name, _stem(path)) if name.split("_")[0] in RULER]
    if not names:
        raise ValueError("neither the folder nor the file is called after a task of RULER, such as niah_single_1")
    task = RULER[names[0].split("_")[0]]
    context, found, rest = _text(row, "input").rpartition(task.begins)
    if not found:
        raise ValueError(f"the prompt has no {task.begins.strip()!r} that its question could begin with")
    question, cut, tail = (task.begins.lstrip() + rest).partition(task.answer)
    prefix = row.get("answer_prefix") or cut + tail
    task, answers = replace(task, prefix=prefix.strip()), _strings(row["outputs"])
    yield _example(task, names[0], str(row["index"]), context, answers, asked=question.strip())


def _leval(row: Row, path: Path, number: int) -> Iterator[Example]:
    evaluation = _text(row, "evaluation")
    if evaluation in ("human", "LLM"):
        return
    if evaluation not in ("exam", "f1", "rouge"):
        raise ValueError(f"L-Eval has no evaluation {evaluation!r}")
    name, context = _stem(path), _text(row, "input")
    task = LEVAL[name if name in LEVAL else evaluation]
    pairs = zip(_strings(row["instructions"]), _strings(row["outputs"]), strict=True)
    for index, (instruction, output) in enumerate(pairs, 1):
        yield _example(task, name, f"{number}.{index}", context, (output,), asked=instruction)


def _nq_open(row: Row, path: Path, number: int) -> Iterator[Example]:
    answers, question = _strings(row["answers"]), _text(row, "question")
    texts, spans, start = [], [], 0
    for passage in row["ctxs"]:
        text = f"{_text(passage, 'title')}. {_text(passage, 'text')}"
        if passage.get("isgold"):
            found = _occurrences(text, answers, re.IGNORECASE) or ((0, len(text)),)
            spans += [(start + begin, start + end) for begin, end in found]
        texts.append(text)
        start += len(text + BETWEEN)
    yield _example(NQ_OPEN, "nq-open", str(number), BETWEEN.join(texts), answers, asked=question, spans=spans)


def _lost_key(row: Row, path: Path, number: int) -> Iterator[Example]:
    key, value = _text(row, "key"), _text(row, "value")
    context = json.dumps(dict(row["ordered_kv_records"]), indent=0, ensure_ascii=False)
    start = context.index(value, context.index(json.dumps(key, ensure_ascii=False) + ": "))
    spans = [(start, start + len(value))]
    yield _example(LOST_KEY, "kv-retrieval", str(number), context, (value,), asked=key, spans=spans)


def _squad(row: Row, path: Path, number: int) -> Iterator[Example]:
    """Unanswerable questions, of version 2, are left out."""
    for article in row["data"]:
        for paragraph in article["paragraphs"]:
            context = _text(paragraph, "context")
            for question in paragraph["qas"]:
                if question.get("is_impossible") or not question["answers"]:
                    continue
                found = {(answer["answer_start"], _text(answer, "text")): None for answer in question["answers"]}
                spans = [(start, start + len(text)) for start, text in found]
                answers = tuple(dict.fromkeys(text for _, text in found))
                ask = _text(question, "question")
                yield _example(SQUAD, "squad", str(question["id"]), context, answers, asked=ask, spans=spans)


def _plain(row: Row, path: Path, number: int) -> Iterator[Example]:
    """Our own form: a question on a context, or on a document that the library has or is to have."""
    answers, question = _strings(row["answers"]), _text(row, "question")
    pages, name = tuple(map(int, row.get("pages") or ())), _stem(path)
    context, document = (_text(row, "context"), "") if "context" in row else ("", _text(row, "document"))
    identity = str(row.get("id", number))
    yield _example(PLAIN, name, identity, context, answers, asked=question, pages=pages, document=document)


Reader = Callable[[Row, Path, int], Iterator[Example]]  # row, file, line

_READERS: dict[frozenset[str], Reader] = {
    frozenset({"input", "context", "answers", "dataset", "all_classes", "_id"}): _longbench,
    frozenset({"id", "context", "input", "answer"}): _infinitebench,
    frozenset({"input", "instructions", "outputs", "evaluation"}): _leval,
    frozenset({"index", "input", "outputs"}): _ruler,
    frozenset({"ordered_kv_records", "key", "value"}): _lost_key,
    frozenset({"question", "answers", "ctxs"}): _nq_open,
    frozenset({"data"}): _squad,
    frozenset({"context", "question", "answers"}): _plain,
    frozenset({"document", "question", "answers"}): _plain,
}


def _reader(row: Any) -> Reader:
    for fields, reader in _READERS.items():
        if isinstance(row, dict) and fields <= row.keys():
            return reader
    raise ValueError("its fields are those of no format that is known")


def _example(
    task: Task,
    name: str,
    identity: str,
    context: str,
    answers: tuple[str, ...],
    *,
    asked: str,
    options: Sequence[str] = (),
    classes: tuple[str, ...] = (),
    spans: Sequence[tuple[int, int]] = (),
    pages: tuple[int, ...] = (),
    document: str = "",
) -> Example:
    if not (context.strip() or document):
        raise ValueError("the context is empty")
    # What to answer from is searched for in the text, how to answer is not.
    last = "{options}\n" if "{options}\n" in task.question else "{input}\n"
    question, behind, instruction = task.question.partition(last)
    lettered = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=False))
    found = _occurrences(context, answers) if task.needle else tuple(spans)
    return Example(
        id=identity,
        task=name,
        context=context,
        question=(question + behind).format(input=asked, options=lettered).strip(),
        instruction=instruction.format(words=len(answers[0].split())),
        answers=answers,
        metric=task.metric,
        max_tokens=task.max_tokens,
        prefix=task.prefix,
        classes=classes,
        spans=found,
        pages=pages,
        document=document,
        depth=found[0][0] / len(context) if task.needle and found and len(answers) == 1 else None,
    )


def _occurrences(text: str, answers: tuple[str, ...], flags: int = 0) -> tuple[tuple[int, int], ...]:
    found = {match.span() for answer in answers if answer for match in re.finditer(re.escape(answer), text, flags)}
    return tuple(sorted(found))


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


def _text(row: Row, field: str) -> str:
    if not isinstance(row[field], str):
        raise TypeError(f"{field} is not text")
    return str(row[field])


def _strings(value: Any) -> tuple[str, ...]:
    """Texts and numbers, single, listed or listed in a list, as texts."""
    if isinstance(value, list):
        strings = tuple(text for item in value for text in _strings(item))
        if strings:
            return strings
    elif isinstance(value, str | int | float):
        return (str(value),)
    raise ValueError(f"{value!r} is no answer")
