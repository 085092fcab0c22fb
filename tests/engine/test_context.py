"""Several documents and the turns of a conversation, as one row of blocks."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from actqkv_cli.engine.context import context_of
from actqkv_cli.engine.conversation import Conversation
from actqkv_cli.engine.document import OpenDocument
from actqkv_cli.engine.session import Session, session_over
from actqkv_cli.errors import UsageError
from actqkv_cli.model.stock import stock_model
from actqkv_cli.store.reader import DocumentReader

LENGTHS = [(141, 96), (96, 141), (141, 3), (7, 150), (64, 33, 90)]
BUDGET = tiny.SINK + 9 * tiny.BLOCK
JOINT = ["full", "streaming", "actqkv", "heads", "lexical", "hybrid"]  # policies that work over several documents


def stored(folder: Path, tokens: int, seed: int, **how: Any) -> Path:
    how = {"positions": "compact", **how}
    tiny.ingest(tiny.model(), tiny.tokens(tokens, seed), folder / f"{seed}", tiny.reading(**how), tiny.HEADS, 64)
    return folder / f"{seed}"


@contextmanager
def documents(*folders: Path) -> Iterator[list[OpenDocument]]:
    with ExitStack() as stack:
        yield [OpenDocument(stack.enter_context(DocumentReader(f)), torch.device("cpu")) for f in folders]


@contextmanager
def together(*folders: Path, budget: int | None = None) -> Iterator[Session]:
    with (
        documents(*folders) as opened,
        session_over(tiny.model(), context_of(opened, tiny.model()), budget) as session,
    ):
        yield session


def stock_side_by_side(texts: list[Tensor], question: Tensor) -> Tensor:
    """Logits behind a question that looks at all documents, which do not look at one another, by transformers alone."""
    ids = torch.cat([*texts, question])
    looks = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    begin = 0
    for text in texts:
        begin += len(text)
        looks[begin : sum(map(len, texts)), :begin] = False
    mask = torch.zeros(1, 1, *looks.shape).masked_fill(~looks, torch.finfo(torch.float32).min)
    with torch.inference_mode():
        return stock_model(tiny.model())(ids[None], attention_mask=mask, use_cache=False).logits[0, -1].float()


@pytest.mark.parametrize("lengths", LENGTHS)
def test_documents_side_by_side_are_attended_as_one(tmp_path: Path, lengths: tuple[int, ...]) -> None:
    """With everything attended it is what stock says of documents that stand in a row, gaps or not."""
    texts = [tiny.tokens(length, seed) for seed, length in enumerate(lengths)]
    folders = [stored(tmp_path, length, seed) for seed, length in enumerate(lengths)]
    question = tiny.tokens(9, 100)
    with together(*folders) as session:
        run = session.start(tiny.question(question), "full", 1)
    assert run.attended_tokens == [sum(lengths)] * 4
    assert (run.logits - stock_side_by_side(texts, question)).abs().max() < 1e-4


@pytest.mark.parametrize("policy", JOINT)
def test_one_budget_and_one_ranking_for_all(tmp_path: Path, policy: str) -> None:
    folders = [stored(tmp_path, length, seed, positions="clamped") for seed, length in enumerate((203, 150, 301))]
    with together(*folders, budget=BUDGET) as session:
        run = session.start(tiny.question(tiny.tokens(9, 100)), policy, 2)
        run.step(5)
        assert run.logits.isfinite().all()
        unranked = ~session.task(run.question).ranked_blocks
        assert unranked.sum() == 3  # the documents' sinks, each a block
        assert run.ranking[unranked].eq(0).all()
        if policy != "full":
            assert sum(run.attended_tokens) <= BUDGET * 4
            assert all(len(ids) <= 2 * 9 for ids in run.blocks_of_layers)


def test_what_is_asked_of_one_document_alone_is_as_before(tmp_path: Path) -> None:
    folder = stored(tmp_path, 301, 3, positions="clamped")
    asked = tiny.tokens(9, 100), "hybrid", tiny.tokens(5, 101)
    with together(folder, budget=BUDGET) as session:
        logits = tiny.answer_logits(session, *asked)
    with tiny.opened(tiny.model(), folder, BUDGET) as alone:
        assert torch.equal(logits, tiny.answer_logits(alone, *asked))


def test_sources_name_the_document_in_which_they_stand(tmp_path: Path) -> None:
    folders = [stored(tmp_path, 203, 0), stored(tmp_path, 150, 1)]
    with together(*folders, budget=BUDGET) as session:
        first, second = session.context.first_blocks
        assert (first, second) == (0, -(-203 // tiny.BLOCK))
        ranking = torch.zeros(session.task(tiny.question(tiny.tokens(9))).ranked_blocks.shape)
        ranking[[second + 4, 3, second - 1]] = torch.tensor([9.0, 6.0, 3.0])
        found = session.context.sources(ranking, set(range(len(ranking))))
        names = [source.document.reader.manifest.source.name for source in found]
        blocks = [source.passage.blocks for source in found]
        assert list(zip(names, blocks, strict=True)) == [("1", (4, 4)), ("0", (3, 3)), ("0", (25, 25))]
        assert [round(source.passage.score, 2) for source in found] == [1, 0.67, 0.33]
        for source, seed in zip(found, (1, 0, 0), strict=True):
            text = tiny.words(tiny.tokens((203, 150)[seed], seed))
            assert source.passage.text == text[source.passage.start : source.passage.end]


def test_documents_that_were_read_in_different_ways_are_refused(tmp_path: Path) -> None:
    folders = [stored(tmp_path, 100, 0), stored(tmp_path, 100, 1, positions="clamped")]
    with pytest.raises(UsageError, match="positions"), together(*folders):
        pass


def test_a_policy_that_knows_one_document_only_says_so(tmp_path: Path) -> None:
    folders = [stored(tmp_path, 100, 0), stored(tmp_path, 100, 1)]
    with together(*folders) as session, pytest.raises(UsageError, match="one document"):
        session.start(tiny.question(tiny.tokens(9)), "acre", 1)


def test_questions_of_different_lengths_go_through_the_model_together(tmp_path: Path) -> None:
    folder = stored(tmp_path, 301, 0, positions="clamped")
    questions = [tiny.question(tiny.tokens(length, length)) for length in (9, 1, 30, 4)]
    policies = ["hybrid", "actqkv", "full", "heads"]
    with together(folder, budget=BUDGET) as session:
        runs = session.start_all([(q, policy, None) for q, policy in zip(questions, policies, strict=True)], 3)
        for token in (4, 8):
            session.step(runs[1:], [token, token + 1, token + 2])  # the first has ended
        for number, (question, policy) in enumerate(zip(questions, policies, strict=True)):
            alone = session.start(question, policy, 3)
            torch.testing.assert_close(runs[number].ranking, alone.ranking, atol=1e-5, rtol=1e-3)
            for token in (4, 8) if number else ():
                alone.step(token + number - 1)
            assert (runs[number].logits - alone.logits).abs().max() < 1e-4
            assert [*map(str, runs[number].blocks_of_layers)] == [*map(str, alone.blocks_of_layers)]


@pytest.mark.parametrize("tokens", [3, 96, 141])
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_a_conversation_is_one_text(tmp_path: Path, tokens: int, positions: str) -> None:
    """With everything attended the third question is answered as stock answers behind all that was said before."""
    folder = stored(tmp_path, tokens, 0, positions=positions)
    said = [tiny.tokens(tokens, 0)]
    with documents(folder) as opened:
        conversation = Conversation(opened, tiny.model())
        for turn in range(4):
            question, answer = tiny.tokens(9 + turn, 10 + turn), tiny.tokens(20, 20 + turn)
            with session_over(tiny.model(), conversation.context) as session:
                run = session.start(tiny.question(question), "full", len(answer))
                logits = torch.stack([run.logits, *(run.step(int(token)) for token in answer)])
                conversation.add(run)
            said += [question, answer]
            assert (logits - tiny.stock_logits(tiny.model(), torch.cat(said), 21)).abs().max() < 1e-4
            assert conversation.context.tokens == -(-tokens // tiny.BLOCK) * tiny.BLOCK + sum(map(len, said[1:]))


@pytest.mark.parametrize("policy", JOINT)
def test_turns_that_outgrow_the_local_window_fall_under_retrieval(tmp_path: Path, policy: str) -> None:
    """Six turns of 29 tokens; the local window holds 32."""
    folder = stored(tmp_path, 141, 0, positions="clamped")
    with documents(folder) as opened:
        conversation = Conversation(opened, tiny.model())
        for turn in range(6):
            with session_over(tiny.model(), conversation.context, BUDGET) as session:
                run = session.start(tiny.question(tiny.tokens(9, turn)), policy, 20)
                for token in tiny.tokens(20, 50 + turn).tolist():
                    run.step(token)
                assert run.logits.isfinite().all()
                assert policy == "full" or sum(run.attended_tokens) <= BUDGET * 4
                assert all(source.document is opened[0] for source in run.sources)
            conversation.add(run)
        last = conversation.context
        assert last.tokens == 144 + 6 * 29
        candidates = session.layout.candidates(last.tokens)
        assert candidates.stop * tiny.BLOCK > 144 + 4 * 29  # so turns are among them
        # What was said there is what is read there.
        with session_over(tiny.model(), last, BUDGET) as session:
            run = session.start(tiny.question(tiny.tokens(9, 7)), "full", 1)
            assert run.attended_tokens == [141 + 6 * 29] * 4


def test_a_conversation_over_several_documents(tmp_path: Path) -> None:
    folders = [stored(tmp_path, 141, 0, positions="clamped"), stored(tmp_path, 99, 1, positions="clamped")]
    with documents(*folders) as opened:
        conversation = Conversation(opened, tiny.model())
        for turn in range(3):
            with session_over(tiny.model(), conversation.context, BUDGET) as session:
                run = session.start(tiny.question(tiny.tokens(9, turn)), "hybrid", 30)
                for token in tiny.tokens(30, 50 + turn).tolist():
                    run.step(token)
            conversation.add(run)
        assert conversation.context.tokens == 144 + 104 + 3 * 39
        assert conversation.context.gaps.tolist() == [141, 142, 143, *range(144 + 99, 144 + 104)]


def test_what_was_said_is_no_source(tmp_path: Path) -> None:
    """A question asked again looks at itself."""
    folder = stored(tmp_path, 141, 0, positions="clamped")
    with documents(folder) as opened:
        conversation = Conversation(opened, tiny.model())
        with session_over(tiny.model(), conversation.context, BUDGET) as session:
            conversation.add(session.start(tiny.question(tiny.tokens(9, 1)), "heads", 1))
        context = conversation.context
        blocks = -(-context.tokens // tiny.BLOCK)
        ranking = torch.zeros(blocks)
        ranking[[3, 10, 144 // tiny.BLOCK, blocks - 1]] = torch.tensor([2.0, 1.0, 9.0, 8.0])
        found = [source.passage for source in context.sources(ranking, set(range(blocks)))]
        assert [(passage.blocks, passage.score) for passage in found] == [((3, 3), 1.0), ((10, 10), 0.5)]


def test_what_was_read_of_documents_stays_for_the_next_question(tmp_path: Path) -> None:
    """Though the row that they were asked in is another one, as it is for each turn of a conversation."""
    folders = [stored(tmp_path, length, seed) for seed, length in enumerate((141, 96))]
    question = tiny.question(tiny.tokens(9, 10))
    with documents(*folders) as opened:
        read = []
        for _ in range(2):
            with session_over(tiny.model(), context_of(opened, tiny.model()), BUDGET) as session:
                session.start(question, "hybrid", 1)
            read.append(sum(document.reader.bytes_read.blocks for document in opened))
    assert read[0] == read[1] > 0
