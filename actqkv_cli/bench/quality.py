"""How well policies find the page, and answer: one ingested document, a file of questions with answers and pages."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import bm25s
import torch

from actqkv_cli.engine.answer import Sampling, decode
from actqkv_cli.engine.session import Run, open_session
from actqkv_cli.errors import UsageError
from actqkv_cli.model.load import LoadedModel
from actqkv_cli.model.prompt import encode_question
from actqkv_cli.retrieval.sources import Passage, passages_of
from actqkv_cli.store.reader import DocumentReader

_ANSWER_TOKENS = 48
LEXICAL = "bm25"


@dataclass(frozen=True)
class Question:
    document: str
    question: str
    answers: tuple[str, ...]
    pages: tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """One question under one policy. first, three: the right page is that of the first source, of one of three;
    answered: an expected answer stands in the model's; nll: nats per token of the first expected answer,
    teacher-forced."""

    first: bool
    three: bool
    answered: bool | None = None
    nll: float | None = None


def read_questions(path: Path) -> list[Question]:
    """JSON lines with document, question, answers and pages. Raises UsageError that names the line."""
    questions = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            question = Question(
                str(row["document"]),
                str(row["question"]),
                tuple(map(str, row["answers"])),
                tuple(map(int, row["pages"])),
            )
            if not question.answers or not question.pages:
                raise ValueError("no answers or no pages")
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{path}, line {number}: {error!r}", "each line needs document, question, answers and pages"
            ) from None
        questions.append(question)
    if not questions:
        raise UsageError(f"{path} holds no questions")
    return questions


def lexical(reader: DocumentReader, questions: Sequence[Question]) -> list[Outcome]:
    """BM25 over the same blocks, as a measure of what plain word search finds."""
    text, starts, size = reader.text(), reader.tokens()["char_start"].tolist(), reader.manifest.geometry.block_size
    first, blocks = reader.manifest.document_start, reader.manifest.block_count
    borders = [starts[max(first, block * size)] for block in range(blocks)] + [len(text)]
    index = bm25s.BM25()
    corpus = [text[begin:end] for begin, end in pairwise(borders)]
    index.index(bm25s.tokenize(corpus, show_progress=False), show_progress=False)
    outcomes = []
    for question in questions:
        words = bm25s.tokenize([question.question], return_ids=False, show_progress=False)[0]
        ranking = torch.tensor(index.get_scores(words))
        outcomes.append(_found(passages_of(reader, ranking, set(range(blocks))), question))
    return outcomes


def ask_all(
    loaded: LoadedModel, reader: DocumentReader, questions: Sequence[Question], policy: str, budget: int
) -> Iterator[Outcome]:
    """Every question under one policy and budget."""
    with open_session(loaded.model, reader, budget) as session:
        for question in questions:
            encoded = encode_question(loaded.tokenizer, question.question)
            run = session.start(encoded, policy, _ANSWER_TOKENS)
            found = _found(passages_of(reader, run.ranking, run.attended), question)
            sampling = Sampling(max_tokens=_ANSWER_TOKENS)
            answer = decode(run, loaded.model, loaded.tokenizer, sampling, lambda text: None).text.casefold()
            gold = loaded.tokenizer(question.answers[0], add_special_tokens=False)["input_ids"]
            nll = _nll(session.start(encoded, policy, len(gold)), gold)
            yield Outcome(found.first, found.three, any(a.casefold() in answer for a in question.answers), nll)


def _found(sources: list[Passage], question: Question) -> Outcome:
    pages = [source.page in question.pages for source in sources]
    return Outcome(first=any(pages[:1]), three=any(pages[:3]))


def _nll(run: Run, gold: list[int]) -> float:
    """Negative log-likelihood per token of the expected answer, fed token by token."""
    total = 0.0
    for position, token in enumerate(gold):
        total -= float(torch.log_softmax(run.logits, dim=-1)[token])
        if position + 1 < len(gold):
            run.step(token)
    return total / max(len(gold), 1)


def summary(policy: str, budget: int | None, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Counts of the outcomes, and the mean of what was measured; the 95 % interval of the mean is normal."""
    nlls = torch.tensor([outcome.nll for outcome in outcomes if outcome.nll is not None])
    row: dict[str, Any] = {
        "policy": policy,
        "budget": budget,
        "questions": len(outcomes),
        "page_first": sum(outcome.first for outcome in outcomes),
        "page_in_three": sum(outcome.three for outcome in outcomes),
    }
    if len(nlls):
        row["answered"] = sum(bool(outcome.answered) for outcome in outcomes)
        row["nll"] = round(float(nlls.mean()), 3)
        row["nll_interval"] = round(1.96 * float(nlls.std()) / len(nlls) ** 0.5, 3) if len(nlls) > 1 else None
    return row
