"""BM25 over the text of a document's blocks, each with its two neighbours: a sentence ends where it likes."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from actqkv_cli.retrieval.policy import Task
from actqkv_cli.store.reader import DocumentReader

_BEFORE = 0.5  # what the turn before a question counts for


def lexical_index(reader: DocumentReader) -> Callable[[str], Tensor]:
    """A function from a question to the BM25 scores of all blocks, `(N,)` fp32 on the CPU, >= 0."""
    import bm25s
    import Stemmer

    # English stemming and stop words do other languages no harm: question and text are cut alike.
    stemmer = Stemmer.Stemmer("english")

    def words(texts: list[str]) -> list[list[str]]:
        return bm25s.tokenize(texts, stemmer=stemmer, return_ids=False, show_progress=False)

    blocks = block_texts(reader)
    corpus = words(["".join(blocks[max(0, i - 1) : i + 2]) for i in range(len(blocks))])
    index, empty, count = bm25s.BM25(), not any(corpus), len(blocks)
    if not empty:
        index.index(corpus, show_progress=False)

    def scores(question: str) -> Tensor:
        asked = words([question])[0]
        return torch.zeros(count) if empty or not asked else torch.tensor(index.get_scores(asked))

    return scores


def lexical_scores(task: Task) -> Tensor:
    """BM25 of every block for the question, `(N,)` fp32 on the CPU, >= 0; those that may not be ranked have 0.

    "When was it finished?" says nothing of what it is about: the turn before it counts too, for half.
    """
    assert task.resident.lexical is not None
    scores = task.resident.lexical(task.text)
    if task.before:
        scores = scores + _BEFORE * task.resident.lexical(task.before)
    return scores * task.ranked_blocks


def coverage(scores: Callable[[str], Tensor], question: str) -> float | None:
    """How much of a question its best block says: its BM25 over that of a block which had every word of the question
    where it counts most, in [0, 1]. None where no word of it is in the text, as in another language.

    scores: as `lexical_index` gives it. A word that is nowhere counts as if it were in one block.
    """
    import bm25s

    words = set(bm25s.tokenize([question], return_ids=False, show_progress=False)[0])
    best = [float(scores(word).max()) for word in words]
    if not any(best):
        return None
    together = scores(question)
    rarest = math.log(1 + len(together))
    return min(1.0, float(together.max()) / sum(one or rarest for one in best))


def block_texts(reader: DocumentReader) -> list[str]:
    """The text of every block; template tokens have none."""
    text, starts, size = reader.text(), reader.tokens()["char_start"].tolist(), reader.manifest.geometry.block_size
    first, blocks = reader.manifest.document_start, reader.manifest.block_count
    borders = [starts[min(max(first, block * size), len(starts) - 1)] for block in range(blocks)] + [len(text)]
    return [text[begin:end] for begin, end in pairwise(borders)]
