"""Sources: what is cited was attended, stands in the text, and is whole."""

import random
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from actqkv_cli.retrieval.sources import Passage, passages

BLOCK, TEMPLATE = 8, 11  # the template fills one block and a part of the next


def reader(text: str, char_start: Tensor, page: Tensor, first: int) -> Any:
    """As much of a `DocumentReader` as is looked at."""
    manifest = SimpleNamespace(document_start=first, geometry=SimpleNamespace(block_size=BLOCK))
    tokens = {"char_start": char_start, "page": page}
    return SimpleNamespace(text=lambda: text, tokens=lambda: tokens, manifest=manifest)


class Book:
    """Numbered words, each of two tokens that cut it in its middle, on pages of uneven length."""

    def __init__(self, words: int = 200, gap: str = " ") -> None:
        starts, pages, self.text = [0] * TEMPLATE, [1] * TEMPLATE, ""
        for number in range(words):
            starts += [len(self.text), len(self.text) + 3]
            pages += [1 + number // 37] * 2
            self.text += f"w{number:05d}" + (gap if number < words - 1 else "")
        self.char_start, self.page = torch.tensor([starts, pages], dtype=torch.int32)
        self.blocks = -(-len(starts) // BLOCK)

    def passages(self, ranking: dict[int, float] | Tensor, attended: set[int] | None = None) -> list[Passage]:
        if isinstance(ranking, dict):
            dense = torch.zeros(self.blocks)
            for block, score in ranking.items():
                dense[block] = score
            ranking = dense
        everything = set(range(self.blocks))
        attended = everything if attended is None else attended
        return passages(reader(self.text, self.char_start, self.page, TEMPLATE), ranking, attended)


@pytest.mark.parametrize("seed", range(40))
def test_what_holds_for_every_passage(seed: int) -> None:
    draw, book = random.Random(seed), Book(gap=random.Random(seed).choice([" ", "\n", "  \n"]))
    scores = [draw.choice([0.0, draw.random() ** 6, draw.random()]) for _ in range(book.blocks)]
    attended = set(draw.sample(range(book.blocks), draw.randint(1, book.blocks)))
    found = book.passages(torch.tensor(scores), attended)
    assert len(found) <= 3
    for passage in found:
        first, last = passage.blocks
        assert set(range(first, last + 1)) <= attended
        assert any(scores[block] > 0 for block in range(first, last + 1))
        assert 0 <= passage.score <= 1
        assert book.text[passage.start : passage.end] == passage.text
        words = passage.text.split()
        assert words
        assert passage.text == passage.text.strip()
        assert all(len(word) == 6 for word in words)
        tokens = range(max(TEMPLATE, first * BLOCK), min(len(book.page), (last + 1) * BLOCK))
        inside = {(token - TEMPLATE) // 2 for token in tokens}
        assert words == [f"w{number:05d}" for number in sorted(inside)]
        numbers = book.page[tokens.start : tokens.stop].tolist()
        assert passage.pages == tuple(sorted(set(numbers)))
        assert numbers.count(passage.page) == max(map(numbers.count, numbers))
    for one, other in pairwise(sorted(found, key=lambda passage: passage.start)):
        assert one.blocks[1] + 1 < other.blocks[0]  # neighbours would have been joined
        assert one.end <= other.start + 6
    ranked = sorted((b for b in attended if b > 0 and scores[b] > 0), key=lambda b: -scores[b])
    if ranked and 0 not in attended:
        assert found[0].blocks[0] <= ranked[0] <= found[0].blocks[1]


def test_neighbours_are_one_passage() -> None:
    (passage,) = Book().passages({20: 3, 21: 2, 19: 1})
    assert passage.blocks == (19, 21)
    assert passage.score == 1


def test_a_block_between_two_joins_them() -> None:
    found = Book().passages({20: 4, 30: 3, 22: 2, 21: 1})
    assert [passage.blocks for passage in found] == [(20, 22), (30, 30)]
    assert [passage.score for passage in found] == [1, 0.75]


def test_best_comes_first() -> None:
    found = Book().passages({40: 2, 5: 5, 20: 3, 30: 1})
    assert [passage.blocks[0] for passage in found] == [5, 20, 40]
    assert [passage.score for passage in found] == sorted((p.score for p in found), reverse=True)


def test_what_was_not_attended_is_not_cited() -> None:
    assert [p.blocks for p in Book().passages({10: 9, 20: 5, 21: 4}, {11, 21})] == [(21, 21)]
    assert Book().passages({10: 9}, set()) == []


def test_no_score_is_no_source() -> None:
    assert Book().passages({}) == []


def test_a_block_that_begins_in_the_template_gives_its_document_part() -> None:
    (passage,) = Book().passages({1: 1})
    assert passage.text == "w00000 w00001 w00002"


def test_the_template_takes_no_place() -> None:
    found = Book().passages({0: 9, 10: 3, 20: 2, 30: 1})
    assert [passage.blocks[0] for passage in found] == [10, 20, 30]


def test_white_space_is_no_source() -> None:
    text = "begin" + "\n" * 60 + "end"
    starts = torch.tensor([0, *range(5, 65), 65], dtype=torch.int32)
    ranking = torch.zeros(8)
    ranking[3] = 1
    assert passages(reader(text, starts, torch.ones_like(starts), 0), ranking, set(range(8))) == []


def test_a_text_without_spaces_is_not_cited_whole() -> None:
    """Chinese and Japanese, for example."""
    text = "灯台は一九〇三年に建てられた。" * 200
    starts = torch.arange(len(text), dtype=torch.int32)
    ranking = torch.zeros(-(-len(text) // BLOCK))
    ranking[100] = 1
    (passage,) = passages(reader(text, starts, torch.ones_like(starts), 0), ranking, {100})
    assert len(passage.text) < 200


def test_the_last_block_reaches_the_end_of_the_text() -> None:
    book = Book()
    (passage,) = book.passages({book.blocks - 1: 1})
    assert passage.end == len(book.text)
