"""Excerpts: whole sentences, short, around what carries the answer, with the page on which that stands."""

import random
import re
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actqkv_cli.retrieval.excerpt import Excerpt, excerpts
from actqkv_cli.retrieval.sources import Passage, passages

BLOCK, TEMPLATE = 8, 3


def book(text: str, page_length: int = 500) -> Any:
    """What is read of a document whose tokens are its words, each with the space before it."""
    begins = [0, *(match.start() for match in re.finditer(r"\s+\S", text))]
    char_start = torch.tensor([0] * TEMPLATE + begins, dtype=torch.int32)
    page = torch.tensor([1] * TEMPLATE + [1 + begin // page_length for begin in begins], dtype=torch.int32)
    manifest = SimpleNamespace(geometry=SimpleNamespace(block_size=BLOCK), document_start=TEMPLATE)
    tokens = {"char_start": char_start, "page": page}
    return SimpleNamespace(text=lambda: text, tokens=lambda: tokens, manifest=manifest)


def found_in(reader: Any, ranked: dict[int, float]) -> list[tuple[Any, Passage]]:
    tokens = reader.tokens()
    ranking = torch.zeros(-(-len(tokens["page"]) // BLOCK))
    for block, score in ranked.items():
        ranking[block] = score
    everything = set(range(len(ranking)))
    return [(reader, passage) for passage in passages(reader, ranking, everything)]


def shown(reader: Any, ranked: dict[int, float], question: str = "Which?", answer: str = "") -> list[Excerpt]:
    return [excerpt for _, excerpt in excerpts(found_in(reader, ranked), question, answer)[0]]


def pages_of(reader: Any, start: int, end: int) -> set[int]:
    tokens = reader.tokens()
    begins, pages = tokens["char_start"].tolist()[TEMPLATE:], tokens["page"].tolist()[TEMPLATE:]
    ranges = pairwise([*begins, len(reader.text())])
    return {page for page, (begin, stop) in zip(pages, ranges, strict=True) if begin < end and stop > start}


def numbered(count: int = 200) -> str:
    return " ".join(
        f"Sentence {number} has the word w{'abcdefghij'[number % 10]}{number}x in it." for number in range(count)
    )


@pytest.mark.parametrize("seed", range(40))
def test_what_holds_for_every_excerpt(seed: int) -> None:
    draw = random.Random(seed)
    sentences = [
        " ".join(f"w{draw.randrange(300)}x" for _ in range(draw.choice([1, 5, 12, 30, 200]))) + "." for _ in range(60)
    ]
    reader = book(draw.choice([" ", "\n", "  \n\n"]).join(text.capitalize() for text in sentences))
    text = reader.text()
    blocks = len(reader.tokens()["page"]) // BLOCK
    found = found_in(reader, {draw.randrange(blocks): draw.random() for _ in range(20)})
    answer = draw.choice(draw.choice(found)[1].text.split())
    result, support = excerpts(found, "Which?", answer)
    assert support == 1
    assert any(excerpt.highlight for _, excerpt in result)
    ends = []
    for _, excerpt in result:
        passage = excerpt.passage
        assert text[passage.start : passage.end] == passage.text == passage.text.strip() != ""
        assert len(passage.text.split()) <= 80
        assert set(passage.text.split()) <= set(text.split())  # words are whole
        assert excerpt.cut[0] or passage.text[0] == "W"
        assert excerpt.cut[1] or passage.text[-1] == "."
        assert not (excerpt.cut[0] and text[: passage.start].rstrip().endswith("."))
        assert passage.page in passage.pages
        assert set(passage.pages) == pages_of(reader, passage.start, passage.end)
        whole = [one for _, one in found if one.blocks == passage.blocks]
        assert [(one.score, one.best) for one in whole] == [(passage.score, passage.best)]
        for start, end in excerpt.highlight:
            assert 0 <= start < end <= len(passage.text)
            assert answer.strip(".").casefold() in passage.text[start:end].casefold()
        ends.append((passage.start, passage.end))
    assert all(one[1] <= other[0] for one, other in pairwise(sorted(ends)))


def test_the_passage_is_widened_to_whole_sentences_and_cut_around_the_answer() -> None:
    reader = book(numbered())
    (excerpt,) = shown(reader, dict.fromkeys(range(40, 48), 1.0), answer="we44x")
    assert excerpt.passage.text.startswith("Sentence ")
    assert excerpt.passage.text.endswith("in it.")
    (start, end) = excerpt.highlight[0]
    assert excerpt.passage.text[start:end] == "Sentence 44 has the word we44x in it."
    assert 100 < start < 250  # in the middle
    assert 40 <= len(excerpt.passage.text.split()) <= 70
    assert excerpt.cut == (False, False)


def test_without_an_answer_in_it_the_best_block_is_shown() -> None:
    reader = book(numbered())
    (excerpt,) = shown(reader, {**dict.fromkeys(range(40, 47), 1.0), 47: 2.0}, answer="nothing")
    assert excerpt.highlight == []
    assert excerpt.passage.best == 47
    place = int(reader.tokens()["char_start"][47 * BLOCK + BLOCK // 2])
    assert excerpt.passage.start <= place < excerpt.passage.end


def test_the_page_is_that_of_the_answer() -> None:
    text = numbered(40)
    reader = book(text, page_length=text.index("Sentence 20 "))
    ranked = {block: 1.0 for block in range(15, 23)}
    for number, page in ((19, 1), (20, 2)):
        (excerpt,) = shown(reader, ranked, answer=f"{number}")
        assert excerpt.highlight
        assert (excerpt.passage.page, excerpt.passage.pages) == (page, (1, 2))


def test_one_sentence_is_one_source() -> None:
    """Two blocks of a long sentence, which are no neighbours."""
    reader = book("Begin. The " + "long " * 50 + "sentence. End.")
    assert len(found_in(reader, {1: 2.0, 4: 1.0})) == 2
    (excerpt,) = shown(reader, {1: 2.0, 4: 1.0})
    assert excerpt.passage.blocks == (1, 1)


def test_no_sources() -> None:
    assert excerpts([], "Which?", "this") == ([], None)
