"""What must be true of sentences that are attended to as a whole."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hand_made import BLOCK, BLOCKS, STORY, TEMPLATE, TOKENS, make_task, normal, story

from actqkv_cli.retrieval.policy import Task
from actqkv_cli.retrieval.sentences import sentences
from actqkv_cli.retrieval.whole import best_spans, sentence_tokens

LONG = "A word " * 60 + "is said. And this."


@pytest.mark.parametrize("text", [STORY, LONG, "x" * 300, "", "\n \n", "One. " * 40])
@pytest.mark.parametrize("token", [1, 3, 7])
def test_a_blocks_sentences_are_whole_or_reach_a_block_further(text: str, token: int, tmp_path: Path) -> None:
    reader = story(tmp_path / "story", text, token)
    found, size, tokens = sentence_tokens(reader), reader.manifest.geometry.block_size, reader.manifest.tokens
    for block in range(reader.manifest.block_count):
        ours, begin, end = found(block), block * size, min((block + 1) * size, tokens)
        assert max(0, begin - size) <= ours.start <= begin < end <= ours.stop <= min(end + size, tokens)
        assert ours.step == 1


def test_they_begin_and_end_where_sentences_do(tmp_path: Path) -> None:
    """Or a block further."""
    found = sentence_tokens(story(tmp_path / "story", STORY, 1))
    begins = {TEMPLATE + one.start for one in sentences(STORY)}
    ends = {TEMPLATE + one.end for one in sentences(STORY)}
    far = 0
    for block in range(1, (TEMPLATE + len(STORY)) // BLOCK):
        ours, begin, end = found(block), block * BLOCK, (block + 1) * BLOCK
        far += (ours.start == begin - BLOCK) + (ours.stop == end + BLOCK)
        between = (
            {*range(begin - 1, begin + 1)} & ends,
            {*range(end, end + 2)} & begins,
        )
        assert ours.start in begins | {begin - BLOCK} or (ours.start == begin and between[0])
        assert ours.stop in ends | {end + BLOCK} or (ours.stop == end and between[1])
    assert 0 < far < 2 * block


def task_with(blocks: int, reach: int, candidates: range = range(1, BLOCKS - 1)) -> Task:
    """Every block's sentences begin and end `reach` tokens beyond it."""

    def sentences_of(block: int) -> range:
        return range(max(0, block * BLOCK - reach), min((block + 1) * BLOCK + reach, TOKENS))

    task = make_task(blocks, candidates=candidates)
    return replace(task, resident=replace(task.resident, sentences=sentences_of))


@pytest.mark.parametrize("reach", [0, 1, BLOCK // 2, BLOCK])
@pytest.mark.parametrize("blocks", [0, 1, 2, 5, 7, 20, 100])
@pytest.mark.parametrize("length", [1, 5])
def test_spans_are_the_best_and_take_no_more_room_than_the_blocks_would(length: int, reach: int, blocks: int) -> None:
    task = task_with(blocks, reach)
    scores = normal(3, BLOCKS)
    selected = best_spans(task, scores, blocks, length)
    candidates = set(task.candidates)
    assert selected.blocks.tolist() == sorted(set(selected.blocks.tolist()) & candidates)
    assert selected.tokens.tolist() == sorted(set(selected.tokens.tolist()))
    beside = set((selected.tokens // BLOCK).tolist())
    assert beside <= candidates - set(selected.blocks.tolist())
    attended = {token for block in selected.blocks.tolist() for token in _tokens(block, block)}
    attended |= set(selected.tokens.tolist())
    assert len(attended) <= blocks * BLOCK
    assert selected.read(BLOCK).tolist() == sorted({token // BLOCK for token in attended})
    if blocks >= len(candidates):
        assert set(selected.blocks.tolist()) == candidates
        return
    length = min(length, blocks)
    starts = sorted(
        range(task.candidates.start, task.candidates.stop - length + 1),
        key=lambda start: -float(scores[start : start + length].sum()),
    )
    left = [start for start in starts if not set(_tokens(start, start + length - 1)) <= attended]
    if left and blocks:
        assert left[0] != starts[0]
        assert (
            len(attended | set(_tokens(left[0], left[0] + length - 1))) > blocks * BLOCK
        )  # it does not fit in any more
    if blocks >= length + 2:  # there is room for the best one's sentences
        assert set(_sentences(task, starts[0], starts[0] + length - 1)) <= attended
    if reach == 0:
        assert not len(selected.tokens)


def _tokens(block: int, last: int) -> range:
    return range(block * BLOCK, min((last + 1) * BLOCK, TOKENS))


def _sentences(task: Task, block: int, last: int) -> range:
    assert task.resident.sentences is not None
    first, end = task.candidates.start * BLOCK, min(task.candidates.stop * BLOCK, TOKENS)
    return range(max(first, task.resident.sentences(block).start), min(end, task.resident.sentences(last).stop))


def test_no_more_than_the_candidates_is_attended() -> None:
    """The sink before them and the turns behind are attended anyway."""
    task = task_with(6, BLOCK, candidates=range(3, 11))
    selected = best_spans(task, torch.tensor([0.0] * 3 + [9.0] + [0.0] * (BLOCKS - 4)), 6, 5)
    assert selected.read(BLOCK).tolist() == [3, 4, 5, 6, 7, 8]
