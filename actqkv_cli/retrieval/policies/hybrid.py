"""Retrieval heads and BM25 together: two scores of the same blocks, standardised and added.

They fail on different questions: what the text says in other words is found by the heads, names that mean nothing to
a small model by the words. Where one place stands out, that alone is attended to: whatever is beside it distracts.
"""

import torch
from torch import Tensor

from actqkv_cli.retrieval.lexical import lexical_scores
from actqkv_cli.retrieval.policies import heads
from actqkv_cli.retrieval.policy import Selection, strength
from actqkv_cli.retrieval.whole import best_spans

BLOCKS = heads.BLOCKS  # at most
# The strength of a ranking from which on the answer stands in its best span: 1.5B model, 16K tokens. Short documents do
# not reach it, for their mean has more of the best in it.
_STRONG = 9.0
_SPAN, _SPAN_ROOM = 5, 6  # blocks: about a paragraph, and the rest of its sentences


class Policy(heads.Policy):
    def score(self, by_heads: Tensor) -> Tensor:
        ranked = self._task.ranked_blocks.to(by_heads.device)
        by_words = lexical_scores(self._task).to(by_heads)
        return by_heads.masked_scatter(ranked, fused(by_heads[ranked], by_words[ranked]))

    def selection(self, score: Tensor) -> Selection:
        task = self._task
        if strength(score) < _STRONG or task.block_budget >= len(task.candidates):
            return super().selection(score)
        return best_spans(task, score, min(task.block_budget, _SPAN_ROOM), _SPAN)


def fused(*scores: Tensor) -> Tensor:
    """The sum of scores `(N,)`, each less its mean and over its deviation, raised so that the least is 0."""
    total = torch.stack([(score - score.mean()) / score.std(correction=0).clamp(min=1e-9) for score in scores]).sum(0)
    return total - total.min()
