"""Retrieval heads and BM25 together: two scores of the same blocks, standardised and added.

They fail on different questions: what the text says in other words is found by the heads, names that mean nothing to
a small model by the words.
"""

import torch
from torch import Tensor

from actqkv_cli.retrieval.policies import heads
from actqkv_cli.retrieval.policies.lexical import lexical_scores

BLOCKS = heads.BLOCKS


class Policy(heads.Policy):
    def score(self, by_heads: Tensor) -> Tensor:
        ranked = self._task.ranked_blocks.to(by_heads.device)
        by_words = lexical_scores(self._task).to(by_heads)
        return by_heads.masked_scatter(ranked, fused(by_heads[ranked], by_words[ranked]))


def fused(*scores: Tensor) -> Tensor:
    """The sum of scores `(N,)`, each less its mean and over its deviation, raised so that the least is 0."""
    total = torch.stack([(score - score.mean()) / score.std(correction=0).clamp(min=1e-9) for score in scores]).sum(0)
    return total - total.min()
