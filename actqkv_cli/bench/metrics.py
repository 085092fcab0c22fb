"""How an answer is judged: each metric as its benchmark's own scorer has it, quirks included, so that figures compare.

LongBench (THUDM/LongBench), InfiniteBench (OpenBMB/InfiniteBench), RULER (NVIDIA/RULER), L-Eval (OpenLMLab/LEval) and
lost-in-the-middle (nelson-liu/lost-in-the-middle). The libraries that some metrics need come with `actqkv[bench]`.
"""

import logging
import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import takewhile
from typing import Any

from actqkv_cli.bench.examples import Example
from actqkv_cli.errors import UsageError

# The Chinese punctuation that LongBench and InfiniteBench drop; their list lacks 〈, 〉 and 《.
_PUNCTUATION_ZH = re.compile(rf"[{re.escape(string.punctuation)}！-－／：-＠［-｀｛-､、-〃》-】〔-〟〰〾〿–—‘’‛-‟…‧﹏]")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def score(metric: str, prediction: str, example: Example) -> float:
    """The prediction's score in [0, 1]: against its best answer, or against all of them where the metric wants all.

    Raises ValueError for an unknown metric, UsageError if a library that the metric needs is not installed.
    """
    if metric in _BY_ANSWER:
        return max(float(_BY_ANSWER[metric](prediction, answer)) for answer in example.answers)
    if metric in _BY_EXAMPLE:
        return float(_BY_EXAMPLE[metric](prediction, example))
    raise ValueError(f"no metric is called {metric!r}")


def _import(module: str) -> Any:
    try:
        with warnings.catch_warnings():
            # Of jieba: invalid escapes in its sources, and setuptools' pkg_resources, which it asks for.
            warnings.simplefilter("ignore")
            return import_module(module)
    except ImportError as error:
        raise UsageError(f"this metric's library is missing: {error}", 'pip install "actqkv[bench]"') from None


def _f1(prediction: Sequence[str], answer: Sequence[str]) -> float:
    """F1 of two bags of words."""
    common = (Counter(prediction) & Counter(answer)).total()
    return 2 * common / (len(prediction) + len(answer)) if common else 0.0


def _normal(text: str) -> str:
    """SQuAD's normal form: lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _normal_zh(text: str) -> str:
    return "".join(_PUNCTUATION_ZH.sub("", text.lower()).split())


def _words_zh(text: str) -> list[str]:
    jieba = _import("jieba")
    jieba.setLogLevel(logging.WARNING)  # it reports its dictionary on stderr
    return list(jieba.cut(text))


def _qa_f1(prediction: str, answer: str) -> float:
    return _f1(_normal(prediction).split(), _normal(answer).split())


def _qa_f1_zh(prediction: str, answer: str) -> float:
    bags = ([word for word in map(_normal_zh, _words_zh(text)) if word] for text in (prediction, answer))
    return _f1(*bags)


def _qa_f1_characters(prediction: str, answer: str) -> float:
    return _f1(_normal_zh(prediction), _normal_zh(answer))


def _rouge(prediction: str, answer: str) -> float:
    """ROUGE-L over sets of words and sentences, of the library `rouge`: not Google's.

    0 where the library fails, as in LongBench: on an empty text, and on sentences too long for its recursion.
    """
    try:
        return _import("rouge").Rouge(metrics=["rouge-l"]).get_scores(prediction, answer)[0]["rouge-l"]["f"]
    except (ValueError, RecursionError):
        return 0.0


def _rouge_zh(prediction: str, answer: str) -> float:
    return _rouge(" ".join(_words_zh(prediction)), " ".join(_words_zh(answer)))


def _google_rouge(kind: str) -> Callable[[str, str], float]:
    return lambda prediction, answer: (
        _import("rouge_score.rouge_scorer").RougeScorer([kind]).score(answer, prediction)[kind].fmeasure
    )


def _first_line(metric: Callable[[str, str], float]) -> Callable[[str, str], float]:
    """The metric on the first line of the prediction: LongBench's few-shot tasks run on into further examples."""
    return lambda prediction, answer: metric(prediction.lstrip("\n").split("\n")[0], answer)


def _classification(prediction: str, example: Example) -> float:
    """1 / the number of classes that the prediction's first line names, if the right one is among them.

    A class that is a part of the right one's name does not count. The benchmark drops it from the list that it walks
    along, and so steps over the one behind it.
    """
    line = prediction.lstrip("\n").split("\n")[0]

    def against(answer: str) -> float:
        named = [name for name in example.classes if name in line]
        at = 0
        while at < len(named):
            if named[at] in answer and named[at] != answer:
                del named[at]
            at += 1
        return 1 / len(named) if answer in named else 0.0

    return max(map(against, example.answers))


def _number_share(prediction: str, answer: str) -> float:
    """The share of the prediction's numbers that are the answer's ("7", "Paragraph 7", "段落7")."""
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(re.sub(r"\D", "", answer)) / len(numbers) if numbers else 0.0


def _code_sim(prediction: str, answer: str) -> float:
    """Similarity, in whole percents, of the answer and the first line that is neither comment nor fence."""
    lines = prediction.lstrip("\n").split("\n")
    code = next((line for line in lines if not re.search("[`#]|//", line)), "")
    return round(_import("rapidfuzz.fuzz").ratio(code, answer)) / 100


def _first_integer(prediction: str, answer: str) -> bool:
    number = re.search("[0-9]+", prediction)
    return number is not None and number[0] == answer


def _words(text: str, separators: str) -> list[str]:
    return text.translate(dict.fromkeys(map(ord, separators), " ")).split()


def _word(prediction: str, answer: str) -> bool:
    return answer in _words(prediction, "\n:\"'.,?!{}")


def _name(prediction: str, example: Example) -> bool:
    """The first answer, in capitals as scripts write names, is one of the words. A name of two words never is."""
    return example.answers[0] in map(str.upper, _words(prediction, "\n:\"'.,?!{}"))


def _text_after(text: str, openings: Sequence[str]) -> str | None:
    """The text after the first of the openings that it has, and after one more character."""
    for opening in openings:
        _, found, rest = text.partition(opening)
        if found:
            return rest[1:]
    return None


def _choice(prediction: str, example: Example) -> bool:
    """The answers are an option's text and letter. A first letter A to D decides, whatever word it begins."""
    text = prediction.strip()
    if text[:1] in set("ABCD"):
        return text[0] in example.answers
    if text in example.answers:
        return True
    text = re.sub(" +", " ", re.sub("[\n\"'.,?!{}]", " ", text))
    rest = _text_after(text, ["answer is:", "answer:", "answer is", "option is"])
    if rest is not None:
        return rest.startswith(example.answers)
    return next((word in example.answers for word in text.split() if word in "ABCD"), False)


def _code_debug(prediction: str, example: Example) -> bool:
    """The answers are a function's name and its option's letter: "B. name" or "the answer is: B"; a mere "B" fails."""
    text = prediction.strip()
    if text[:2] in (f"{example.answers[1]}.", f"{example.answers[1]}:"):
        return True
    text = re.sub(" +", " ", re.sub("[\n`'\"*-]|[Oo]ption", " ", text))
    rest = _text_after(text, ["answer is:", "is:", "answer:"])
    return rest is not None and rest.startswith(example.answers)


def _code_run(prediction: str, answer: str) -> bool:
    """The last word is the number."""
    try:
        return int(_words(prediction, "\n.`'\":")[-1]) == int(answer)
    except (ValueError, IndexError):
        return False


def _math_find(prediction: str, answer: str) -> bool:
    number = re.search(r"\d+\.\d+|\d+", prediction)
    return number is not None and float(number[0]) == float(answer)


def _math_calc(prediction: str, example: Example) -> float:
    """The share of the values that are right before the first wrong one; signs are not read."""
    pairs = zip(re.findall("[0-9]+", prediction), example.answers, strict=False)
    right = takewhile(lambda pair: int(pair[0]) == int(pair[1]), pairs)
    return len(list(right)) / len(example.answers)


def _contains(prediction: str, answer: str) -> bool:
    return answer.lower() in re.sub("[\x00-\x1f]", "\n", prediction).strip().lower()


def _contains_all(prediction: str, example: Example) -> float:
    return sum(_contains(prediction, answer) for answer in example.answers) / len(example.answers)


def _subspan(prediction: str, answer: str) -> bool:
    """Nothing behind the first line counts: a model could copy the whole context."""
    return _normal(answer) in _normal(prediction.split("\n")[0])


def _exam(prediction: str, answer: str) -> float:
    """L-Eval's exact match. Options: 1 for the same, 0.25 for a part of them (or none); numbers: equal; else contained.

    Of several lines the first with two characters or more counts.
    """
    if set(answer) <= set("ABCD"):
        return 1.0 if prediction == answer else 0.25 * (set(prediction) <= set(answer))
    try:
        return float(float(prediction) == float(answer))
    except ValueError:
        line = next((line for line in prediction.split("\n") if len(line) > 1), prediction)
        return float(answer.lower().replace(" ", "") in line.lower().replace(" ", ""))


def _exam_options(answer: str) -> str:
    return re.sub("[^A-D]", "", (answer.split() or [""])[0]) or "A"


def _exam_choice(prediction: str, answer: str) -> float:
    """One option: the first A to D anywhere, if only in a word; "A" is taken for a guess where there is none."""
    option = prediction if prediction in "ABCD" else (re.findall("[A-D]", prediction) or ["A"])[0]
    return _exam(option, _exam_options(answer))


def _exam_choices(prediction: str, answer: str) -> float:
    """Several options: the letters at the start; if fewer than two, also those before a space, dot or bracket."""
    options = prediction
    if prediction not in "ABCD":
        rest = prediction.lstrip("ABCD")
        options = prediction.removesuffix(rest)
        if len(options) < 2:
            options += "".join(re.findall(r"[A-D](?=[\s.)])", rest.split("Question")[0]))
        options = "".join(sorted(set(options))) or "A"
    return _exam(options, _exam_options(answer))


def _exam_math(prediction: str, answer: str) -> float:
    """The whole number behind "The answer is", or the last word of the first paragraph that has a digit."""

    def number(text: str) -> str:
        stated = re.search(r"The answer is (\S+)", text)
        numeric = [word for word in text.split("\n\n")[0].split(" ") if re.search(r"\d", word)] or [""]
        return re.sub(r"\D", "", (stated[1] if stated else numeric[-1]).split(".")[0])

    return _exam(number(prediction), number(answer))


def _exam_code(prediction: str, answer: str) -> float:
    """The output of a program within the last words, or the first ones behind "the final output"."""

    def plain(text: str) -> str:
        text = re.sub(r"[,'\\]", "", re.sub(r"\s+", " ", text)).replace(".0", "")
        for spaced, tight in (("] [", "]["), ("[ [", "[["), ("] ]", "]]")):
            text = text.replace(spaced, tight)
        return text

    text = plain(prediction)
    for phrase in ("will be", "of the code", "is", "would be", "the value of", "the result of", "printed"):
        text = text.replace(phrase, "")
    count = len(answer.split()) + 3
    _, found, rest = text.rpartition("the final output")
    words = re.split(r"\s+", rest)
    return _exam(" ".join(words[:count] if found else words[-count:]), plain(answer))


def _exam_judge(prediction: str, answer: str) -> bool:
    """True or false by the document. L-Eval also asks what holds in the real world: that half is not long context."""
    verdicts = [verdict for word in prediction.lower().split() for verdict in ("true", "false") if verdict in word]
    return verdicts[:1] == [answer.lower().split("[fact:")[0].strip()]


_BY_ANSWER: dict[str, Callable[[str, str], float]] = {
    "qa_f1": _qa_f1,
    "qa_f1_first_line": _first_line(_qa_f1),
    "qa_f1_zh": _qa_f1_zh,
    "qa_f1_characters": _qa_f1_characters,
    "rouge": _rouge,
    "rouge_first_line": _first_line(_rouge),
    "rouge_zh": _rouge_zh,
    "rougeL": _google_rouge("rougeL"),
    "rougeLsum": _google_rouge("rougeLsum"),
    "retrieval": _number_share,
    "count": _number_share,
    "code_sim": _code_sim,
    "first_integer": _first_integer,
    "word": _word,
    "code_run": _code_run,
    "math_find": _math_find,
    "string_match_part": _contains,
    "best_subspan_em": _subspan,
    "exam": _exam,
    "exam_choice": _exam_choice,
    "exam_choices": _exam_choices,
    "exam_math": _exam_math,
    "exam_code": _exam_code,
    "exam_judge": _exam_judge,
}
_BY_EXAMPLE: dict[str, Callable[[str, Example], float]] = {
    "classification": _classification,
    "name": _name,
    "choice": _choice,
    "code_debug": _code_debug,
    "math_calc": _math_calc,
    "string_match_all": _contains_all,
}
