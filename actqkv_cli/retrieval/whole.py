"""Blocks begin and end anywhere. What a question attends to is completed to whole sentences: half of one misleads."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from actqkv_cli.retrieval.policy import Selection, Task
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


def best_spans(task: Task, scores: Tensor, blocks: int, length: int) -> Selection:
    """The best spans of candidates, as many as take no more room than so many blocks.

    A span is `length` blocks in a row, as good as the sum of their scores `(N,)`, and has the rest of the sentences
    that it begins and ends in, where there is room for these. Spans may overlap.
    """
    candidates, size = task.candidates, task.block_size
    sentences, length = task.resident.sentences, min(length, blocks)
    everything = torch.arange(candidates.start, candidates.stop)
    if blocks >= len(candidates) or not blocks:
        return Selection(everything[:blocks], everything[:0])
    first, end = candidates.start * size, min(candidates.stop * size, task.tokens)
    sums = scores[candidates.start : candidates.stop].float().cpu().unfold(0, length, 1).sum(dim=-1)
    shown = torch.zeros(end - first, dtype=torch.bool)
    for start in (sums.argsort(descending=True, stable=True) + candidates.start).tolist():
        plain = range(start * size, min((start + length) * size, end))
        whole = range(sentences(start).start, sentences(start + length - 1).stop) if sentences else plain
        for tokens in (whole, plain):
            more = shown.clone()
            more[max(tokens.start - first, 0) : tokens.stop - first] = True
            if fits := int(more.sum()) <= blocks * size:
                shown = more
                break
        if not fits:
            break
    places = first + shown.nonzero()[:, 0]
    held = torch.bincount(places // size, minlength=candidates.stop)
    full = held == torch.bincount(torch.arange(first, end) // size, minlength=candidates.stop)
    full &= held > 0
    return Selection(full.nonzero()[:, 0], places[~full[places // size]])
