"""Retrieval heads (Wu et al., arXiv 2404.15574): a few heads rank all blocks, and every layer attends to the best.

Two passes, as in ACRE: a scout pass runs the question through the layers up to the last retrieval head and yields
one ranking; in the question pass every layer has the first blocks of it, the same number.
"""

import torch
from torch import Tensor

from actqkv_cli.errors import UsageError
from actqkv_cli.retrieval.policy import Pass, Selection, Task, kv_head
from actqkv_cli.retrieval.whole import best_spans

BLOCKS = 16  # of each layer, unless a budget is given; more distract a small model
NEIGHBOUR = 0.5  # share of a block's score that its neighbours get: an answer often stands beside what was asked
_QUERY_CHUNK = 32  # question tokens scored at a time: bounds the scores to 32 x T


class Policy:
    needs: tuple[str, ...] = ("head_keys",)
    selects_once = True

    def __init__(self, task: Task) -> None:
        if not task.resident.heads:
            raise UsageError("no retrieval heads are known of this model", "ask with --policy actqkv")
        self._task = task
        self.scout_layers = 1 + max(head.layer for head in task.resident.heads)
        blocks = -(-task.tokens // task.block_size)
        self._head_scores = self._ranking = torch.zeros(blocks, device=task.resident.device)
        none = torch.empty(0, dtype=torch.int64)
        # The scout attends to the sink, and to a conversation's newest turns: so the heads were found.
        self._chosen = Selection(none, none)
        self._scouting = False

    def begin(self, step: Pass) -> None:
        self._scouting = step == "scout"
        if step == "question":
            self._ranking = self.score(with_neighbours(self._head_scores, self._task.ranked_blocks))
            self._chosen = self.selection(self._ranking)

    def score(self, by_heads: Tensor) -> Tensor:
        """The scores `(N,)` that blocks are ranked by, from those of the retrieval heads."""
        return by_heads

    def selection(self, score: Tensor) -> Selection:
        """What to attend to, by the scores `(N,)` that blocks are ranked by: the best, wherever they stand."""
        return best_spans(self._task, score, self._task.block_budget, length=1)

    def select(self, layer: int, queries: Tensor) -> Selection:
        if self._scouting:
            for head in self._task.resident.heads:
                if head.layer == layer:
                    # The root keeps one head that is very sure from outvoting the others.
                    self._head_scores += head_mass(self._task, layer, head.head, queries).sqrt()
        return self._chosen

    def known_blocks(self, layer: int) -> Tensor:
        return self._chosen.read(self._task.block_size)

    def ranking(self, mass: Tensor) -> Tensor:
        return self._ranking.cpu()


def with_neighbours(score: Tensor, ranked: Tensor) -> Tensor:
    """Every block's score and a share of its neighbours'. score: `(N,)`; ranked: bool `(N,)`, the others get none."""
    beside = torch.zeros_like(score)
    beside[1:] += score[:-1]
    beside[:-1] += score[1:]
    return score + NEIGHBOUR * beside * ranked.to(beside)


def head_mass(task: Task, layer: int, head: int, queries: Tensor) -> Tensor:
    """Attention of one retrieval head from a question to every block. queries: `(H, W, d)`. Returns `(N,)` fp32."""
    resident = task.resident
    row = layer, kv_head(head, resident.query_heads, resident.kv_heads)
    keys = resident.head_keys[resident.head_rows.index(row)]
    return question_mass(queries[head : head + 1, task.own], keys[None], task)[0]


def question_mass(queries: Tensor, keys: Tensor, task: Task) -> Tensor:
    """Un-rotated attention from a question's own tokens to every block, a head at a time.

    queries: `(H, Wq, d)`, keys: `(H, >= T, d)`. Softmax over all tokens that may be ranked, averaged over the
    question's tokens, summed per block: `(H, N)` fp32.
    """
    keys, unranked = keys[:, : task.tokens].float(), task.unranked.to(keys.device)
    mass = keys.new_zeros(len(keys), task.tokens)
    for chunk in queries.split(_QUERY_CHUNK, dim=1):
        scores = chunk.float() @ keys.mT * queries.shape[-1] ** -0.5
        mass += torch.softmax(scores.index_fill_(-1, unranked, float("-inf")), dim=-1).sum(dim=1)
    return block_sums(mass / max(queries.shape[1], 1), task.block_size)


def block_sums(mass: Tensor, block_size: int) -> Tensor:
    """Sums of `(..., T)` over blocks, the last may be short: `(..., ceil(T / block_size))`."""
    return torch.nn.functional.pad(mass, (0, -mass.shape[-1] % block_size)).unflatten(-1, (-1, block_size)).sum(-1)
