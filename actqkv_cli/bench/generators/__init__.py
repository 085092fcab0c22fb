"""Questions on long documents that need no data: made from a seed, the same on every machine.

A document is ingested once for all of its questions, so that it holds many needles, each asked for in turn. The tasks
are named after the benchmarks' own (`needles`), beside `facts` in prose; `needle_grid` is the needle in a haystack.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from actqkv_cli.bench.examples import Example
from actqkv_cli.bench.generators import facts, needles
from actqkv_cli.bench.generators.document import Plan, plant, repeat_sentences
from actqkv_cli.bench.generators.draw import Draw
from actqkv_cli.bench.generators.grid import needle_grid
from actqkv_cli.bench.generators.prose import noise, prose
from actqkv_cli.errors import UsageError

__all__ = ["GENERATORS", "Generator", "generate", "needle_grid"]


@dataclass(frozen=True)
class Generator:
    """plan: what a document of so many questions is made of, with filler from a haystack or from `filler`;
    per_document: questions of a document at most; max_tokens: of an answer."""

    plan: Callable[[Draw, int, Iterator[str]], Plan]
    per_document: int
    metric: str
    max_tokens: int
    filler: Callable[[Draw], Iterator[str]] = prose


# As many questions as make about thirty needles per document; fewer in kv, whose pairs have some 70 tokens each, so
# that 4,000 tokens hold them.
GENERATORS: Mapping[str, Generator] = {
    "passkey": Generator(needles.passkey, 30, "first_integer", 16, noise),
    "number": Generator(needles.number, 30, "first_integer", 24, noise),
    "kv": Generator(needles.kv, 20, "best_subspan_em", 64, needles.kv_pairs),
    "niah_single": Generator(needles.niah_single, 30, "string_match_all", 32),
    "niah_multikey": Generator(needles.niah_multikey, 30, "string_match_all", 32),
    "niah_multivalue": Generator(needles.niah_multivalue, 8, "string_match_all", 96),
    "niah_multiquery": Generator(needles.niah_multiquery, 8, "string_match_all", 96),
    "vt": Generator(needles.vt, 6, "string_match_all", 64, noise),
    "facts": Generator(facts.facts, 30, "best_subspan_em", 48),
}


def generate(
    task: str, tokens: int, questions: int, seed: int, count: Callable[[str], int], haystack: str | None = None
) -> list[Example]:
    """`questions` examples on as few documents as GENERATORS allows, with about as many on each.

    tokens: of a document, at most; it has at least 97 % of them. count: a text's number of tokens, called three to
    five times per document. haystack: hides the needles in place of our own filler, between its sentences, repeated or
    cut to length. spans: the needles that hold the answers, in the same order. Raises UsageError if the task is
    unknown, takes no haystack, or cannot be made of so few tokens.
    """
    if task not in GENERATORS:
        raise UsageError(f"there is no task {task!r}", f"one of {', '.join(GENERATORS)}")
    if questions < 1 or tokens < 1:
        raise UsageError(f"{questions} questions on {tokens} tokens cannot be made", "both must be 1 or more")
    if task == "kv" and haystack is not None:
        raise UsageError("kv makes its whole document itself", "leave out the haystack")
    generator = GENERATORS[task]
    documents = -(-questions // generator.per_document)
    examples = []
    for document in range(documents):
        draw, number = Draw(task, seed, document), (questions + document) // documents
        plan = generator.plan(draw, number, generator.filler(draw) if haystack is None else repeat_sentences(haystack))
        made = plant(plan, tokens, count)
        spans = dict(zip(plan.needles, made.spans, strict=True))
        for place, question in enumerate(plan.questions):
            examples.append(
                Example(
                    id=f"{task}-{seed}-{document}-{place}",
                    task=task,
                    context=made.text,
                    question=question.text,
                    answers=question.answers,
                    metric=generator.metric,
                    max_tokens=generator.max_tokens,
                    prefix=question.prefix,
                    spans=tuple(spans[needle] for needle in question.needles),
                )
            )
    return examples
