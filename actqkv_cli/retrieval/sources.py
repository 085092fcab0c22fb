"""Sources: the best-ranked of the blocks that were attended, joined into passages of the text."""

from dataclasses import dataclass

from torch import Tensor

from actqkv_cli.retrieval.sentences import whole_words
from actqkv_cli.store.reader import DocumentReader

MAX_PASSAGES = 3
_MAX_BLOCKS = 8  # taken from the head of the ranking to make them


@dataclass(frozen=True)
class Passage:
    """A run of neighbouring blocks. page: where most of it stands; pages: all that it touches; score: that of its best
    block, as a share of the best of all, in [0, 1]; start, end: characters of the document's text; blocks: first and
    last; best: the best of them."""

    page: int
    pages: tuple[int, ...]
    score: float
    start: int
    end: int
    text: str
    blocks: tuple[int, int]
    best: int


def passages(
    reader: DocumentReader, ranking: Tensor, attended: set[int], best_score: float | None = None
) -> list[Passage]:
    """The best passages of a document, best first.

    ranking: `(N,)`, >= 0, a score per block; attended: the blocks that some layer attended to; best_score: the best
    score of all documents, if there are several.
    """
    text, char_start, page = reader.text(), reader.tokens()["char_start"], reader.tokens()["page"]
    first, block_size = reader.manifest.document_start, reader.manifest.geometry.block_size

    def characters(blocks: list[int]) -> tuple[int, int]:
        start, end = max(first, blocks[0] * block_size), min(len(char_start), (blocks[-1] + 1) * block_size)
        if start >= end:
            return 0, 0
        return int(char_start[start]), int(char_start[end]) if end < len(char_start) else len(text)

    best = (float(ranking.max()) if best_score is None else best_score) or 1.0
    groups: list[list[int]] = []
    taken = 0
    for block in ranking.argsort(descending=True).tolist():
        if taken == _MAX_BLOCKS or float(ranking[block]) <= 0:
            break
        if block not in attended or not text[slice(*characters([block]))].strip():
            continue
        near = [group for group in groups if group[0] - 1 <= block <= group[-1] + 1]
        if not near and len(groups) == MAX_PASSAGES:
            break
        joined = sorted([block, *(b for group in near for b in group)])
        if near:  # a block between two groups joins them where the better one stands
            groups[groups.index(near[0])] = joined
            groups = [group for group in groups if group not in near[1:]]
        else:
            groups.append(joined)
        taken += 1
    found = []
    for group in groups:
        numbers = page[max(first, group[0] * block_size) : (group[-1] + 1) * block_size].tolist()
        begin, stop = whole_words(text, *characters(group))
        found.append(
            Passage(
                page=max(sorted(set(numbers)), key=numbers.count),
                pages=tuple(sorted(set(numbers))),
                score=round(float(ranking[group].max()) / best, 4),
                start=begin,
                end=stop,
                text=text[begin:stop],
                blocks=(group[0], group[-1]),
                best=group[int(ranking[group].argmax())],
            )
        )
    return found
