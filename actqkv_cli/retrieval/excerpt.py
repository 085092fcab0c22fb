"""What a reader is shown of an answer's sources: whole sentences around the one that carries it, some 60 words."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from actqkv_cli.retrieval.highlight import highlights
from actqkv_cli.retrieval.sentences import LONGEST, Sentence, columns, sentences_at
from actqkv_cli.retrieval.sources import Passage
from actqkv_cli.store.reader import DocumentReader


@dataclass(frozen=True)
class Excerpt:
    """passage: with the text that is shown, and its pages; highlight: ranges of that text, of the sentences that carry
    the answer; cut: whether the text begins, and whether it ends, in the midst of a very long sentence."""

    passage: Passage
    highlight: list[tuple[int, int]]
    cut: tuple[bool, bool]


def excerpts(
    found: Sequence[tuple[DocumentReader, Passage]], question: str, answer: str
) -> tuple[list[tuple[DocumentReader, Excerpt]], float | None]:
    """An excerpt for each passage, best passage first, and the answer's support, as in `Highlights`.

    A sentence belongs to the first passage that has a part in it; a passage that has no other is left out.
    """
    taken: list[tuple[DocumentReader, Sentence]] = []
    own = []
    for reader, passage in found:
        ours = [
            sentence
            for sentence in sentences_at(reader.text(), passage.start, passage.end)
            if not any(r is reader and s.start < sentence.end and sentence.start < s.end for r, s in taken)
        ]
        taken += [(reader, sentence) for sentence in ours]
        if ours:
            own.append((reader, passage, ours))
    carried = highlights(answer, question, [[r.text()[s.start : s.end] for s in ours] for r, _, ours in own])
    shown = [
        (reader, _excerpt(reader, passage, ours, numbers))
        for (reader, passage, ours), numbers in zip(own, carried.sentences, strict=True)
    ]
    return shown, carried.support


def _excerpt(reader: DocumentReader, passage: Passage, sentences: Sequence[Sentence], carrying: list[int]) -> Excerpt:
    """carrying: the numbers of the sentences that carry the answer, best first."""
    text = reader.text()
    sizes = [columns(text[sentence.start : sentence.end]) + 1 for sentence in sentences]
    shown = _around(carrying[0] if carrying else _nearest(reader, passage, sentences), sizes)
    inside = [sentences[number] for number in sorted(carrying) if number in shown]
    start, end = sentences[shown[0]].start, sentences[shown[-1]].end
    numbers = _pages(reader, start, end)
    pages_inside = _pages(reader, inside[0].start, inside[0].end) if inside else numbers
    return Excerpt(
        passage=replace(
            passage,
            page=max(sorted(set(pages_inside)), key=pages_inside.count),
            pages=tuple(sorted(set(numbers))),
            start=start,
            end=end,
            text=text[start:end],
        ),
        highlight=[(sentence.start - start, sentence.end - start) for sentence in inside],
        cut=(not sentences[shown[0]].begins, not sentences[shown[-1]].ends),
    )


def _around(core: int, sizes: Sequence[int]) -> range:
    """As many neighbours of a sentence as there is room for, by turns behind it and before it."""
    first, last, left = core, core, LONGEST - sizes[core]
    while True:
        before = left
        if last + 1 < len(sizes) and sizes[last + 1] <= left:
            last += 1
            left -= sizes[last]
        if first > 0 and sizes[first - 1] <= left:
            first -= 1
            left -= sizes[first]
        if left == before:
            return range(first, last + 1)


def _nearest(reader: DocumentReader, passage: Passage, sentences: Sequence[Sentence]) -> int:
    """The sentence in which the middle of the passage's best block is."""
    starts, size = reader.tokens()["char_start"], reader.manifest.geometry.block_size
    middle = int(starts[min(len(starts) - 1, passage.best * size + size // 2)])
    return min(range(len(sentences)), key=lambda n: max(sentences[n].start - middle, middle - sentences[n].end + 1))


def _pages(reader: DocumentReader, start: int, end: int) -> list[int]:
    """The page of every token in a range of the text."""
    first, tokens = reader.manifest.document_start, reader.tokens()
    starts = tokens["char_start"][first:].contiguous()
    begin = max(0, int(torch.searchsorted(starts, start, right=True)) - 1)
    stop = max(begin + 1, int(torch.searchsorted(starts, end)))
    pages: list[int] = tokens["page"][first + begin : first + stop].tolist()
    return pages
