"""One question of a benchmark, and how many of them come to share a document."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from actqkv_cli.errors import UsageError

BETWEEN = "\n\n"  # joined contexts
UNANSWERABLE = "-unanswerable"  # at the end of a task's name


@dataclass(frozen=True)
class Example:
    """A question on a text, and how its answer is judged.

    id: unique within its file; task: the benchmark's name of it; answers: any of them is right, unless the metric
    wants all; instruction: how to answer, follows the question and is not searched for; metric: a name in
    `bench.metrics`; max_tokens: of the answer; prefix: what the answer is made to begin with; classes: of a
    classification; spans: characters [start, end) of the context where the answer stands, if known; pages: the same
    as page numbers; depth: where the needle stands, in [0, 1]; document: the name of the document in the library that
    is asked, in place of a context; passage: the context that the question came with, where contexts were joined.

    A question without answers is one that its document does not answer.
    """

    id: str
    task: str
    context: str
    question: str
    answers: tuple[str, ...]
    metric: str
    max_tokens: int
    instruction: str = ""
    prefix: str = ""
    classes: tuple[str, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()
    pages: tuple[int, ...] = ()
    depth: float | None = None
    document: str = ""
    passage: str = ""


def joined(examples: Iterable[Example], tokens: int, count: Callable[[str], int]) -> list[Example]:
    """The examples with their contexts joined, in order, into documents of at most `tokens` tokens each.

    count: how many tokens a text has. Equal contexts stand in a document once; one that is longer than `tokens` is a
    document of its own.
    """
    documents: list[tuple[dict[str, int], list[Example]]] = []  # where each context begins; the questions
    size = length = 0
    for example in examples:
        if not documents or example.context not in documents[-1][0]:
            more = count(example.context + BETWEEN)
            if not documents or size + more > tokens:
                documents.append(({}, []))
                size = length = 0
            documents[-1][0][example.context] = length
            size += more
            length += len(example.context + BETWEEN)
        documents[-1][1].append(example)
    result = []
    for places, questions in documents:
        text = BETWEEN.join(places)
        for example in questions:
            start = places[example.context]
            spans = tuple((begin + start, end + start) for begin, end in example.spans)
            depth = spans[0][0] / len(text) if example.depth is not None else None
            result.append(replace(example, context=text, spans=spans, depth=depth, passage=example.context))
    return result


def unanswerable(examples: Sequence[Example]) -> list[Example]:
    """The questions of every document put to the one before it, which does not answer them.

    Raises UsageError where there is one document only.
    """
    contexts = list(dict.fromkeys(example.context for example in examples))
    if len(contexts) < 2:
        raise UsageError("questions of another document need two documents", "ask more questions, or lower --tokens")
    other = dict(zip(contexts, [contexts[-1], *contexts[:-1]], strict=True))
    return [
        replace(e, task=e.task + UNANSWERABLE, context=other[e.context], answers=(), spans=(), passage="")
        for e in examples
    ]
