"""Blocks begin and end anywhere. What a question attends to is completed to whole sentences: half of one misleads."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from actqkv_cli.retrieval.policy import Selection, Task, best
from actqkv_cli.retrieval.sentences import sentences_at
from actqkv_cli.store.reader import DocumentReader


def sentence_tokens(reader: DocumentReader) -> Callable[[int], range]:
    """A function from a block to its tokens and those of sentences that it has a part of; at most a block's length more
    on either side."""
    text, manifest = reader.text(), reader.manifest
    size, first, tokens = manifest.geometry.block_size, manifest.document_start, manifest.tokens
    starts = reader.tokens()["char_start"].long()[first:]

    def token(character: int) -> int:
        """The token in which a character stands: the last one that begins at or before it."""
        return first + int(torch.searchsorted(starts, character, right=True)) - 1

    @functools.cache
    def of(block: int) -> range:
        begin, end = block * size, min((block + 1) * size, tokens)
        if end <= first:
            return range(begin, end)
        last = int(starts[end - first]) if end < tokens else len(text)
        found = sentences_at(text, int(starts[max(begin - first, 0)]), last)
        if not found:
            return range(begin, end)
        low, high = token(found[0].start), token(found[-1].end - 1) + 1
        return range(max(begin - size, min(low, begin)), min(end + size, max(high, end)))

    return of


def whole_sentences(task: Task, scores: Tensor, blocks: int) -> Selection:
    """The best candidates by scores `(N,)`, each with the rest of its sentences, as many as take no more room than so
    many blocks."""
    candidates, size = task.candidates, task.block_size
    first, end = candidates.start * size, min(candidates.stop * size, task.tokens)
    chosen = best(scores[candidates.start : candidates.stop], blocks, candidates.start)
    if blocks >= len(candidates) or task.resident.sentences is None:
        return Selection(chosen, chosen[:0])
    shown = torch.zeros(end - first, dtype=torch.bool)
    ranked = (
        scores[candidates.start : candidates.stop].argsort(descending=True, stable=True)[:blocks] + candidates.start
    )
    for block in ranked.tolist():
        tokens = task.resident.sentences(block)
        more = shown.clone()
        more[max(tokens.start - first, 0) : tokens.stop - first] = True
        if int(more.sum()) > blocks * size:
            break
        shown = more
    if not shown.any():  # there is no room for a block's sentences
        return Selection(chosen, chosen[:0])
    places = first + shown.nonzero()[:, 0]
    held = torch.bincount(places // size, minlength=candidates.stop)
    full = held == torch.bincount(torch.arange(first, end) // size, minlength=candidates.stop)
    whole = (held > 0) & full
    return Selection(whole.nonzero()[:, 0], places[~whole[places // size]])
