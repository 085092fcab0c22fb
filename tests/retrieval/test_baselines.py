"""The methods that ours is compared with: each takes the blocks that its own definition ranks first."""

from pathlib import Path

import pytest
import tiny
import torch
from hand_made import (
    BLOCK,
    BLOCKS,
    HEADS,
    KV_HEADS,
    LAYERS,
    SINK,
    STORY,
    make_task,
    make_tensors,
    normal,
    question,
    run,
    story,
    top,
)
from torch import Tensor

from actqkv_cli.retrieval.fixed import FixedScores
from actqkv_cli.retrieval.lexical import block_texts, coverage, lexical_index
from actqkv_cli.retrieval.policies import make_policy
from actqkv_cli.retrieval.whole import best_spans


def selected(name: str, blocks: int = 10, **task: object) -> list[list[list[int]]]:
    """Ids by pass and layer."""
    policy = make_policy(name, make_task(blocks, **task))  # type: ignore[arg-type]
    return [[chosen.blocks.tolist() for chosen in choices] for choices in run(policy, 1)]


def test_fixed_scores_hold_for_every_query() -> None:
    """A row a layer, or one for all; what stands outside of the candidates does not count, however good."""
    scores = normal(3, LAYERS, BLOCKS)
    scores[:, [0, 46, 49]] = 100
    task = make_task()
    for given, rows in ((scores, scores), (scores[2], scores[2].expand(LAYERS, -1))):
        for seed in (1, 2):
            for choices in run(FixedScores(task, given), seed):
                assert [chosen.blocks.tolist() for chosen in choices] == [top(row, range(1, 46), 10) for row in rows]


@pytest.mark.parametrize("candidates", [range(1, 46), range(2, 9), range(0, 0)])
@pytest.mark.parametrize("blocks", [0, 3, 10])
def test_streaming_has_the_newest_and_full_has_all(candidates: range, blocks: int) -> None:
    newest = list(candidates)[max(0, len(candidates) - blocks) :]
    assert selected("streaming", blocks, candidates=candidates) == [[newest] * LAYERS] * 5
    assert selected("full", blocks, candidates=candidates) == [[list(candidates)] * LAYERS] * 5


@pytest.mark.parametrize("name", ["h2o", "snapkv"])
def test_each_layer_has_its_best_by_the_stored_scores(name: str) -> None:
    scores = make_tensors()[name]
    expected = [top(scores[layer], range(1, 46), 10) for layer in range(LAYERS)]
    assert selected(name) == [expected] * 5
    assert len({str(ids) for ids in expected}) == LAYERS  # they differ, so a mix-up of layers would show


def queries_of(number: int, layer: int) -> Tensor:
    """What `hand_made.run` asks with in its pass `number`, the first being the question."""
    return question(1 + 100 * number, layer, 1) if number else question(1, layer)


@pytest.mark.parametrize("name", ["infllm", "quest"])
def test_each_step_of_each_layer_chooses_anew(name: str) -> None:
    """InfLLM by the mean query over anchors, Quest by channel-wise bounds; block by block in float64."""
    methods, found = make_tensors(), selected(name)
    for number, choices in enumerate(found):
        for layer, ids in enumerate(choices):
            queries, scores = queries_of(number, layer).double(), torch.zeros(BLOCKS)
            for block in range(BLOCKS):
                total = 0.0
                for head in range(HEADS):
                    kv = head * KV_HEADS // HEADS
                    if name == "infllm":
                        total += float(queries[head].mean(dim=0) @ methods["anchors"][layer, block, 0, kv].double())
                    else:
                        least, greatest = methods["bounds"][layer, block, :, kv].double()
                        most = torch.maximum(queries[head] * least, queries[head] * greatest)
                        total += float(most.sum(dim=1).mean())
                scores[block] = total
            assert ids == top(scores, range(1, 46), 10)
    assert len({str(choices) for choices in found}) == 5


def test_lexical_ranks_by_shared_words() -> None:
    """BM25 of a block, the sink left out; whatever the attention."""
    task = make_task(text="Where is the lighthouse?")
    assert task.resident.lexical is not None
    expected = task.resident.lexical("Where is the lighthouse?").clone()
    expected[: SINK // BLOCK] = 0
    policy = make_policy("lexical", task)
    assert torch.equal(policy.ranking(torch.rand(BLOCKS)), expected)
    passages = best_spans(task, expected, 10, length=1).blocks.tolist()
    assert selected("lexical", text="Where is the lighthouse?") == [[passages] * LAYERS] * 5
    assert selected("lexical", text="And why?") != selected("lexical", text="Where is the lighthouse?")


def test_the_blocks_share_out_the_text(tmp_path: Path) -> None:
    texts = block_texts(story(tmp_path / "story", STORY))
    assert "".join(texts) == STORY
    assert [len(text) for text in texts] == [2 * 3, *[8 * 3] * 8, len(STORY) - 66 * 3]
    assert block_texts(story(tmp_path / "one-token", STORY, len(STORY))) == [STORY]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("Did the keeper own a HERON?", ["keeper", "heron"]),
        ("Which schooners?", ["schooner"]),
        ("the the of", []),
        ("xylophone?", []),
        ("", []),
        ("¿…?", []),
    ],
)
def test_bm25_gives_to_blocks_that_share_words(asked: str, words: list[str], tmp_path: Path) -> None:
    """Theirs, or those of a neighbour, in any form; nothing to any other block, most where all of them stand."""
    reader = story(tmp_path / "story", STORY)
    scores, texts = lexical_index(reader)(asked), block_texts(reader)
    assert scores.shape == (len(texts),)
    assert (scores.dtype, scores.device.type) == (torch.float32, "cpu")
    around = ["".join(texts[max(0, i - 1) : i + 2]).lower() for i in range(len(texts))]
    for text, score in zip(around, scores.tolist(), strict=True):
        assert (score > 0) == any(word in text for word in words)
    assert not words or all(word in around[int(scores.argmax())] for word in words)


@pytest.mark.parametrize("text", ["", " \n ", "the of and", "…"])
def test_a_text_without_words_has_no_scores(text: str, tmp_path: Path) -> None:
    scores = lexical_index(story(tmp_path / "story", text))("the heron")
    assert not scores.any()


def test_the_coverage_of_a_question_falls_with_every_word_that_is_elsewhere_or_nowhere(tmp_path: Path) -> None:
    scores = lexical_index(story(tmp_path / "story", STORY))
    word, found, with_another = (coverage(scores, asked) for asked in ("heron", "the heron's", "heron xylophone"))
    assert word == found == pytest.approx(1)
    assert with_another is not None
    assert 0 < with_another < 0.8
    apart = coverage(scores, "heron schooner")
    assert apart is not None
    assert apart < 1
    for asked in ("xylophone?", "the of", "", "¿…?"):
        assert coverage(scores, asked) is None


def test_in_a_session_the_words_of_the_question_find_their_block(tmp_path: Path) -> None:
    """And it is what all layers attend to, and what is cited."""
    document, budget = tiny.tokens(301), tiny.SINK + 3 * BLOCK
    document[document == 777] = 0
    document[155] = 777  # in block 19
    tiny.ingest(tiny.model(), document, tmp_path / "document", tiny.reading())
    with tiny.opened(tiny.model(), tmp_path / "document", budget) as session:
        run = session.start(tiny.question(torch.tensor([777])), "lexical", 2)
        run.step(5)
        assert [ids.tolist() for ids in run.blocks_of_layers] == [[18, 19, 20]] * 4
        assert run.ranking.nonzero().flatten().tolist() == [18, 19, 20]
