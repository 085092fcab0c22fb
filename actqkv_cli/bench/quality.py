"""Questions under policies and budgets: what is found, and fidelity to full attention or what is answered."""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from actqkv_cli.bench.examples import Example
from actqkv_cli.bench.metrics import score
from actqkv_cli.bench.paired import Measured, Setting
from actqkv_cli.documents.document import Document, Page
from actqkv_cli.engine.answer import Sampling, decode_all
from actqkv_cli.engine.confidence import trust
from actqkv_cli.engine.context import Context
from actqkv_cli.engine.run import Run
from actqkv_cli.engine.session import Session
from actqkv_cli.model.load import LoadedModel
from actqkv_cli.model.prompt import EncodedQuestion, encode_question
from actqkv_cli.model.tokenizer import Tokenizer
from actqkv_cli.retrieval.policy import strength

REFERENCE = "full"
TOGETHER = 8  # runs that go through the model at once: more take memory for little
_SHORT = {"contains": "best_subspan_em", "f1": "qa_f1"}
_ALL_ANSWERS = frozenset({"string_match_all", "math_calc"})  # metrics that want every answer


def document_of(context: str) -> Document:
    """A context as a document of one page, its characters untouched."""
    digest = hashlib.sha256(context.encode()).hexdigest()
    return Document(f"context-{digest[:12]}.txt", digest, (Page(1, context),), 1, (), (), "text")


def document_name(example: Example) -> str:
    """What the results call the document that a question is about."""
    return example.document or document_of(example.context).name


def measure_fidelity(
    loaded: LoadedModel, session: Session, doc_index: int, example: Example, settings: Sequence[Setting]
) -> Iterator[Measured]:
    """How a question's gold answer fares under every setting, beside `full`, if that is among them and comes first.

    doc_index: which of the session's documents the question is about.
    """
    gold = _gold_tokens(loaded.tokenizer, example)
    encoded = _encoded(loaded, example)
    reference: Tensor | None = None
    for start in range(0, len(settings), TOGETHER):
        together = settings[start : start + TOGETHER]
        runs = session.start_all([(encoded, policy, budget or None) for policy, budget in together], len(gold))
        for setting, run, logits in zip(together, runs, session.teacher_force(runs, gold), strict=True):
            log_p = torch.log_softmax(logits, dim=-1).cpu()
            if setting[0] == REFERENCE:
                reference = log_p
            values = likelihood(log_p, gold, reference) if len(gold) else {}
            values |= _recall(run, session.context, doc_index, example) | _cost(run, session.context)
            run.close()
            yield make_row(example, session.context, setting, values)


def measure_answers(
    loaded: LoadedModel, session: Session, asked: Sequence[tuple[int, Example]], settings: Sequence[Setting]
) -> Iterator[Measured]:
    """What is answered to questions of one length of answer, under every setting. asked: the index of each question's
    document, as for `measure_fidelity`, and the question; they go through the model together."""
    wanted = [(doc_index, example, setting) for doc_index, example in asked for setting in settings]
    sampling = Sampling(max_tokens=asked[0][1].max_tokens)
    for start in range(0, len(wanted), TOGETHER):
        together = wanted[start : start + TOGETHER]
        runs = session.start_all(
            [(_encoded(loaded, example), policy, budget or None) for _, example, (policy, budget) in together],
            sampling.max_tokens,
        )
        decoded = decode_all(runs, session.step, loaded.tokenizer, loaded.stop_tokens, sampling)
        for (doc_index, example, setting), run, answer in zip(together, runs, decoded, strict=True):
            coverage = run.coverage
            trusted = trust(answer, run.ranking, coverage)
            values = judge(example, answer.text, trusted.answered)
            values |= {
                "likelihood": answer.likelihood,
                "least": answer.min_probability,
                "strength": strength(run.ranking),
            }
            values |= {} if coverage is None else {"coverage": coverage}
            # How far confidence is from being right, squared (Brier 1950).
            values["brier"] = (trusted.confidence - values.get("contains", values.get("score", 0.0))) ** 2
            values |= _recall(run, session.context, doc_index, example) | _cost(run, session.context)
            run.close()
            yield make_row(example, session.context, setting, values, answer.text)


def _encoded(loaded: LoadedModel, example: Example) -> EncodedQuestion:
    return encode_question(loaded.tokenizer, example.question, example.instruction, example.prefix)


def make_row(
    example: Example, context: Context, setting: Setting, values: dict[str, float], answer: str = ""
) -> Measured:
    """What a question measures under a setting, as the results keep it."""
    return Measured(
        example=example.id,
        task=example.task,
        document=document_name(example),
        tokens=sum(document.tokens for document in context.documents),
        policy=setting[0],
        budget=setting[1],
        values=values,
        depth=example.depth,
        answer=answer,
    )


def judge(example: Example, answer: str, answered: bool) -> dict[str, float]:
    """The benchmark's own score of an answer, for a short one both of the usual scores, and whether it declines."""
    if not example.answers:
        return {"declined_rightly": float(not answered)}
    values = {"score": score(example.metric, answer, example), "declined": float(not answered)}
    if example.metric in _SHORT.values():
        values |= {name: score(metric, answer, example) for name, metric in _SHORT.items()}
    return values


def likelihood(log_p: Tensor, gold: Tensor, reference: Tensor | None) -> dict[str, float]:
    """nll, nats per gold token; agreement of the argmax with the reference's, and KL(reference || log_p), nats.

    log_p, reference: log-probabilities `(A, V)` fp32; gold: `(A,)` int64.
    """
    values = {"nll": -float(log_p.gather(1, gold[:, None]).mean())}
    if reference is not None:
        values["agreement"] = float((log_p.argmax(dim=1) == reference.argmax(dim=1)).float().mean())
        values["divergence"] = float((reference.exp() * (reference - log_p)).sum(dim=1).mean())
    return values


def gold_blocks(context: Context, doc_index: int, example: Example) -> list[set[int]]:
    """The blocks in which each of the example's spans stands."""
    reader, origin = context.documents[doc_index].reader, context.first_blocks[doc_index]
    starts, first = reader.tokens()["char_start"].long(), reader.manifest.document_start
    size = reader.manifest.geometry.block_size
    found = []
    for begin, end in example.spans:
        # The token in which a character stands is the last one that begins at or before it.
        low, high = torch.searchsorted(starts[first:], torch.tensor([begin, end - 1]), right=True).tolist()
        found.append(set(range(origin + (first + low - 1) // size, origin + (first + high - 1) // size + 1)))
    return found


def _gold_tokens(tokenizer: Tokenizer, example: Example) -> Tensor:
    if not example.answers:
        return torch.empty(0, dtype=torch.int64)
    text = ", ".join(example.answers) if example.metric in _ALL_ANSWERS else example.answers[0]
    return torch.tensor(tokenizer.encode(" " + text if example.prefix else text))


def _recall(run: Run, context: Context, doc_index: int, example: Example) -> dict[str, float]:
    """Whether the best 1, 3 and 5 blocks touch a gold span, or, where all are wanted, their share; whether the right
    page is cited."""
    values: dict[str, float] = {}
    gold, order = gold_blocks(context, doc_index, example), run.ranking.argsort(descending=True).tolist()
    for count in (1, 3, 5) if gold else ():
        hits = [not blocks.isdisjoint(order[:count]) for blocks in gold]
        values[f"recall{count}"] = sum(hits) / len(gold) if example.metric in _ALL_ANSWERS else float(any(hits))
    if example.pages:
        ours = context.documents[doc_index]
        pages = [source.document is ours and source.passage.page in example.pages for source in run.sources]
        values |= {"page1": float(any(pages[:1])), "page3": float(any(pages[:3]))}
    return values


def _cost(run: Run, context: Context) -> dict[str, float]:
    """The fewest and the most retrieved blocks of a layer, tokens attended per layer, and bytes kept in memory."""
    blocks, tokens = [len(ids) for ids in run.blocks_of_layers], run.attended_tokens
    values = {
        "least_blocks": float(min(blocks)),
        "most_blocks": float(max(blocks)),
        "attended": sum(tokens) / len(tokens),
        "bytes": float(sum(tensor.nbytes for tensor in context.resident.tensors(*run.policy.needs))),
    }
    ratio = getattr(run.policy, "entropy_ratio", None)
    return values if ratio is None else {**values, "entropy": ratio}
