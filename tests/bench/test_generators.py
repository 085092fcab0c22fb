"""What must hold of every generated document: where its needles stand, how long it is, that it is always the same."""

import json
import re
from collections.abc import Callable
from itertools import islice, pairwise

import pytest

from actqkv_cli.bench.examples import Example
from actqkv_cli.bench.generators import GENERATORS, generate, needle_grid
from actqkv_cli.bench.generators.document import sentences_of
from actqkv_cli.bench.generators.draw import Draw
from actqkv_cli.bench.generators.facts import KINDS, PLACES
from actqkv_cli.bench.generators.prose import prose
from actqkv_cli.errors import UsageError

TASKS = list(GENERATORS)
OPEN = [task for task in TASKS if task != "kv"]  # take the user's own text
TOKENS = 4000
# Neither kind of sentence is among ours.
HAYSTACK = " ".join(
    f"Line {n} of this report is about Mr. Brown's {n * 7} zebras, all of them striped." for n in range(90)
)


def words(text: str) -> int:
    return len(text.split())


def documents(examples: list[Example]) -> list[str]:
    return list(dict.fromkeys(example.context for example in examples))


def pieces(example: Example) -> list[str]:
    return [example.context[start:end] for start, end in example.spans]


@pytest.mark.parametrize("task", TASKS)
def test_an_answer_stands_in_its_span_and_nowhere_else(task: str) -> None:
    for example in generate(task, TOKENS, 12, 0, words):
        assert len(example.spans) == len(example.answers)
        for answer, needle, (start, end) in zip(example.answers, pieces(example), example.spans, strict=True):
            assert answer in needle
            if task != "vt":  # a name of a chain stands in the next assignment, too
                rest = example.context[:start] + " | " + example.context[end:]
                assert answer not in rest


@pytest.mark.parametrize("task", TASKS)
def test_the_needles_are_whole_pieces_of_the_text(task: str) -> None:
    for example in generate(task, TOKENS, 4, 3, words):
        for needle in pieces(example):
            assert needle == needle.strip()
            assert needle[-1] in ".”,"
            assert "\n" not in needle


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("tokens", [1500, 6000])
def test_a_document_has_97_to_100_percent_of_the_tokens(task: str, tokens: int) -> None:
    for context in documents(generate(task, tokens, 40, 1, words)):
        assert 0.97 * tokens <= words(context) <= tokens


@pytest.mark.parametrize("task", OPEN)
def test_the_needles_go_between_the_sentences_of_a_haystack(task: str) -> None:
    examples = generate(task, TOKENS, 5, 0, words, HAYSTACK)
    (context,) = documents(examples)
    assert 0.97 * TOKENS <= words(context) <= TOKENS
    left = context
    for needle in {needle for example in examples for needle in pieces(example)}:
        left = left.replace(needle + " ", "")
    left = re.sub(r"The secret number kept under \S+ is \d+\.(?: |$)", "", left)  # the distractors
    assert left == ((HAYSTACK + "\n\n") * 9)[: len(left)]


def test_a_long_haystack_is_cut() -> None:
    (context,) = documents(generate("passkey", 1000, 2, 0, words, HAYSTACK * 5))
    assert context.startswith("Line 0 of this report")
    assert 970 <= words(context) <= 1000


@pytest.mark.parametrize("task", TASKS)
def test_no_needle_stands_where_the_tool_looks_anyway(task: str) -> None:
    for example in generate(task, 1500, 40, 2, words):
        for start, end in example.spans:
            assert start >= 0.04 * len(example.context)
            assert end <= 0.94 * len(example.context)


@pytest.mark.parametrize("task", TASKS)
def test_the_depths_are_spread_evenly(task: str) -> None:
    examples = generate(task, 8000, GENERATORS[task].per_document, 0, words)
    (context,) = documents(examples)
    depths = sorted((start + end) / 2 / len(context) for example in examples for start, end in example.spans)
    even = 0.9 / len(depths)
    assert depths[0] == pytest.approx(0.04 + even / 2, abs=0.01)
    assert depths[-1] == pytest.approx(0.94 - even / 2, abs=0.01)
    assert all(gap == pytest.approx(even, abs=0.01) for gap in (b - a for a, b in pairwise(depths)))


@pytest.mark.parametrize("task", ["niah_multivalue", "niah_multiquery", "vt"])
def test_the_needles_of_one_question_go_through_the_whole_document(task: str) -> None:
    for example in generate(task, TOKENS, 6, 0, words):
        depths = [start / len(example.context) for start, _ in example.spans]
        assert depths == sorted(depths)
        assert depths[-1] - depths[0] > 0.4


@pytest.mark.parametrize("task", TASKS)
def test_nothing_is_asked_or_answered_twice(task: str) -> None:
    examples = generate(task, TOKENS, 2 * GENERATORS[task].per_document, 0, words)
    assert len({example.id for example in examples}) == len(examples)
    for context in documents(examples):
        of_it = [example for example in examples if example.context == context]
        assert len({example.question for example in of_it}) == len(of_it)
        answers = [answer for example in of_it for answer in example.answers]
        assert len(set(answers)) == len(answers)


@pytest.mark.parametrize("task", TASKS)
def test_documents_are_as_few_as_may_be_and_alike(task: str) -> None:
    limit = GENERATORS[task].per_document
    for questions, expected in ((1, 1), (limit, 1), (limit + 1, 2), (3 * limit - 1, 3)):
        examples = generate(task, TOKENS, questions, 0, words)
        sizes = [sum(example.context == context for example in examples) for context in documents(examples)]
        assert (len(examples), len(sizes)) == (questions, expected)
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_makes_the_same_examples_again_and_another_makes_others(task: str) -> None:
    one, again, other = (generate(task, TOKENS, 3, seed, words) for seed in (5, 5, -5))
    assert one == again
    assert not {example.answers for example in one} & {example.answers for example in other}
    assert documents(one) != documents(other)


def test_the_draws_are_those_of_every_python() -> None:
    """Mersenne Twister seeded by SHA-512 of the text: what Python 3.11 gives, on x86-64."""
    draw = Draw("facts", 7, 0)
    drawn = [draw.below(1000) for _ in range(4)]
    assert drawn == [184, 609, 630, 202]


@pytest.mark.parametrize("task", TASKS)
def test_metrics_and_prefixes(task: str) -> None:
    metric = {
        "passkey": "first_integer",
        "number": "first_integer",
        "kv": "best_subspan_em",
        "facts": "best_subspan_em",
    }
    for example in generate(task, TOKENS, 3, 0, words):
        assert example.task == task
        assert example.metric == metric.get(task, "string_match_all")
        assert bool(example.prefix) == (task != "facts")
        assert not any(answer in example.question + example.prefix for answer in example.answers)


def test_a_passkey_has_5_digits_and_a_number_10_with_neighbours_alike() -> None:
    for example in generate("passkey", TOKENS, 30, 0, words):
        assert re.fullmatch(r"[1-9]\d{4}", example.answers[0])
    for example in generate("number", TOKENS, 30, 0, words):
        (digits,) = example.answers
        assert re.fullmatch(r"[1-9]\d{9}", digits)
        assert sum(a == b for a, b in pairwise(digits)) >= 5


def test_kv_is_json_and_holds_the_answers() -> None:
    examples = generate("kv", TOKENS, 20, 0, words)
    table = json.loads(examples[0].context)
    uuid = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
    assert all(uuid.fullmatch(key) and uuid.fullmatch(value) for key, value in table.items())
    assert len(table) == words(examples[0].context) / 2
    for example in examples:
        (key,) = uuid.findall(example.question)
        assert (table[key],) == example.answers


def test_kv_takes_no_haystack() -> None:
    with pytest.raises(UsageError, match="kv"):
        generate("kv", TOKENS, 3, 0, words, HAYSTACK)


@pytest.mark.parametrize(("task", "several"), [("niah_single", 1), ("niah_multivalue", 4), ("niah_multiquery", 4)])
def test_every_secret_number_of_the_text_is_wanted(task: str, several: int) -> None:
    examples = generate(task, TOKENS, 6, 0, words)
    assert all(len(example.answers) == several for example in examples)
    found = re.findall(r"kept under (\S+) is (\d+)\.", examples[0].context)
    assert sorted(value for _, value in found) == sorted(value for example in examples for value in example.answers)
    for example in examples:
        asked = {key for key, _ in found if re.search(rf"\b{key}\b", example.question)}
        assert sorted(value for key, value in found if key in asked) == sorted(example.answers)


def test_multikey_hides_its_needles_among_many_of_their_kind() -> None:
    examples = generate("niah_multikey", TOKENS, 6, 0, words)
    found = dict(re.findall(r"kept under (\S+) is (\d+)\.", examples[0].context))
    assert len(found) > 10 * len(examples)
    assert len(set(found.values())) == len(found)
    for example in examples:
        (key,) = (key for key in found if re.search(rf"under {key}\?", example.question))
        assert (found[key],) == example.answers


def test_a_chain_of_variables_leads_to_its_number() -> None:
    examples = generate("vt", TOKENS, 6, 0, words)
    value_of: dict[str, str] = {}
    for name, value in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", examples[0].context):
        assert name not in value_of
        value_of[name] = value_of.get(value, value)  # what it stands for must have been assigned before
    assert all(value.isdigit() for value in value_of.values())
    for example in examples:
        (value,) = re.findall(r"\d{5}", example.question)
        assert set(example.answers) == {name for name in value_of if value_of[name] == value}
        assert len(example.answers) == 5


def test_there_are_facts_of_many_kinds() -> None:
    assert set(KINDS) == {"who", "what", "where", "when", "how many"}
    assert all(len(templates) >= 6 for templates in KINDS.values())
    frames = {
        (template.fact.format(it=named, answer="x"), template.question.format(it=described))
        for templates in KINDS.values()
        for template in templates
        for named, described in PLACES
    }
    assert len({fact for fact, _ in frames}) == len({question for _, question in frames}) == len(frames) >= 200


def test_no_word_that_matters_in_a_question_stands_in_its_fact() -> None:
    little = "about from have into many much that through were what when where which whose with"

    def matter(text: str) -> set[str]:
        return {word[:5] for word in re.findall("[a-z]{4,}", text.lower()) if word not in little.split()}

    draw = Draw(0)
    for template in (template for templates in KINDS.values() for template in templates):
        for named, described in PLACES:
            fact = template.fact.format(it=named, answer=template.answer(draw))
            question = template.question.format(it=described)
            assert not matter(fact) & matter(question), (fact, question)


def test_the_prose_is_varied() -> None:
    text = "".join(islice(prose(Draw(0)), 2000)).lower()
    flat = re.findall(r"[\w'-]+", text)
    assert len(set(flat)) > 1000
    blocks = [frozenset(flat[start : start + 32]) for start in range(0, len(flat) - 32, 32)]
    common = [len(a & b) / len(a | b) for a, b in pairwise(blocks)]
    assert sum(common) / len(common) < 0.25
    assert len(set(blocks)) == len(blocks)
    sentences = re.split(r"(?<=[.?”]) |\n\n", text)
    assert len(set(sentences)) > 0.9 * len(sentences)
    assert 200 < text.count("\n\n") < 500


@pytest.mark.parametrize("task", TASKS)
def test_too_few_tokens_for_the_needles(task: str) -> None:
    for tokens in (10, 50):
        with pytest.raises(UsageError, match=f"{tokens} tokens"):
            generate(task, tokens, GENERATORS[task].per_document, 0, words)


@pytest.mark.parametrize(
    "call",
    [
        lambda: generate("chess", 1000, 1, 0, words),
        lambda: generate("vt", 1000, 0, 0, words),
        lambda: generate("vt", 0, 1, 0, words),
        lambda: generate("vt", 1000, 1, 0, words, " \n "),
        lambda: needle_grid("", [1000], [0.5], 0, words),
        lambda: needle_grid(HAYSTACK, [1000], [50], 0, words),
        lambda: needle_grid(HAYSTACK, [20], [0.5], 0, words),
    ],
)
def test_what_cannot_be_made_is_refused_with_a_hint(call: Callable[[], object]) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    assert caught.value.hint


def test_counting_is_spared() -> None:
    counted: list[int] = []

    def count(text: str) -> int:
        counted.append(len(text))
        return words(text)

    (context,) = documents(generate("facts", 20_000, 30, 0, count))
    assert sum(counted) < 4 * len(context)
    counted.clear()
    grid = needle_grid(HAYSTACK, [20_000], [0, 0.25, 0.5, 0.75, 1], 0, count)
    assert sum(counted) < 8 * len(grid[0].context)


def test_the_sentences_of_a_text_are_the_text() -> None:
    text = "Mr. Low met J. Smith. “Really?” he asked.\n\nA line\nand more! 是的。不是。 " + "x" * 1000 + " y z " * 300
    found = sentences_of(text)
    assert "".join(found) == text.strip() + "\n\n"
    assert found[:6] == [
        "Mr. Low met J. Smith. ",
        "“Really?” ",
        "he asked.\n\n",
        "A line\nand more! ",
        "是的。",
        "不是。",
    ]
    assert max(map(len, found)) <= 402


DEPTHS = [0.0, 0.25, 0.5, 0.75, 1.0]


def test_the_grid_has_a_document_for_each_length_and_depth() -> None:
    examples = needle_grid(HAYSTACK, [1000, 3000], DEPTHS, 0, words)
    assert [example.depth for example in examples] == DEPTHS * 2
    assert len(documents(examples)) == len({example.id for example in examples}) == 10
    assert len({(example.question, example.answers, *pieces(example)) for example in examples}) == 1
    for example, length in zip(examples, [1000] * 5 + [3000] * 5, strict=True):
        assert 0.97 * length <= words(example.context) <= length
        ((start, end),) = example.spans
        rest = example.context[:start] + example.context[end:].removeprefix(" ")
        assert rest.strip() == ((HAYSTACK + "\n\n") * 9)[: len(rest.strip())]
        sentence = 90 / len(example.context)  # the needle moves back by one at most
        assert example.depth is not None
        assert example.depth - sentence - (end - start) / len(rest) <= start / len(example.context) <= example.depth
        assert example.answers[0] in example.context[start:end]
        assert example.answers[0] not in rest + example.question
        assert (example.task, example.metric) == ("needle", "best_subspan_em")


def test_depth_is_literal_at_the_ends() -> None:
    first, last = needle_grid(HAYSTACK, [1000], [0, 1], 0, words)
    assert first.spans[0][0] == 0
    assert last.spans[0][1] == len(last.context)


def test_a_grid_is_that_of_its_seed() -> None:
    one, again, other = (needle_grid(HAYSTACK, [1000], [0.5], seed, words) for seed in (1, 1, 2))
    assert one == again
    assert pieces(one[0]) != pieces(other[0])
