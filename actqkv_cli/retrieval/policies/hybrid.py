"""Retrieval heads and BM25 together: two scores of the same blocks, standardised and added.

They fail on different questions: what the text says in other words is found by the heads, names that mean nothing to
a small model by the words. Where one place or two stand out, these alone are attended to: whatever is beside them
distracts. Where more are about as good, the best blocks are, wherever they stand.
"""

import torch
from torch import Tensor

from actqkv_cli.retrieval.lexical import lexical_scores
from actqkv_cli.retrieval.policies import heads
from actqkv_cli.retrieval.policy import Selection
from actqkv_cli.retrieval.whole import whole_spans

BLOCKS = heads.BLOCKS  # at most
_SPAN = 6  # blocks of a place: about a paragraph
_PLACES = 2  # at most
_ALIKE = 0.7  # of the best place's score: what has less does not stand out beside it


class Policy(heads.Policy):
    def score(self, by_heads: Tensor) -> Tensor:
        ranked = self._task.ranked_blocks.to(by_heads.device)
        by_words = lexical_scores(self._task).to(by_heads)
        return by_heads.masked_scatter(ranked, fused(by_heads[ranked], by_words[ranked]))

    def selection(self, score: Tensor) -> Selection:
        task = self._task
        length = min(_SPAN, task.block_budget, len(task.candidates))
        places = best_places(score, task.candidates, length) if length else []
        if len(places) > _PLACES:
            return super().selection(score)
        return whole_spans(task, places, task.block_budget)


def best_places(score: Tensor, candidates: range, length: int) -> list[range]:
    """The best spans of so many candidates that do not overlap, best first: those whose scores `(N,)` sum to about as
    much as the best one's. One too many is enough to know that they are."""
    sums = score[candidates.start : candidates.stop].float().cpu().unfold(0, length, 1).sum(dim=-1)
    enough, found = _ALIKE * sums.max(), list[range]()
    while len(found) <= _PLACES and sums.max() >= enough:
        start = int(sums.argmax())
        found.append(range(candidates.start + start, candidates.start + start + length))
        sums[max(start - length + 1, 0) : start + length] = float("-inf")  # what overlaps it
    return found


def fused(*scores: Tensor) -> Tensor:
    """The sum of scores `(N,)`, each less its mean and over its deviation, raised so that the least is 0."""
    total = torch.stack([(score - score.mean()) / score.std(correction=0).clamp(min=1e-9) for score in scores]).sum(0)
    return total - total.min()
