"""Retrieval heads (Wu et al., arXiv 2404.15574): a few heads rank all blocks, and every layer attends to the best.

Two passes, as in ACRE: a scout pass runs the question through the layers up to the last retrieval head and yields
one ranking; in the question pass each layer has the first blocks of it.

Options: with `own` a layer fills what is left of its share behind the best BLOCKS by its own probe-query, which comes
closer to full attention; `uniform` gives every layer as many.
"""

import torch
from torch import Tensor

from actqkv_cli.errors import UsageError
from actqkv_cli.retrieval.policies import actqkv
from actqkv_cli.retrieval.policy import Pass, Selection, Task, best, kv_head
from actqkv_cli.retrieval.whole import whole_sentences
from actqkv_kernels import activation_probe, budget_shares, density

OPTIONS = frozenset({"own", "uniform"})
BLOCKS = 16  # of each layer, unless a budget is given; more distract a small model
NEIGHBOUR = 0.5  # share of a block's score that its neighbours get: an answer often stands beside what was asked
_QUERY_CHUNK = 32  # question tokens scored at a time: bounds the scores to 32 x T


class Policy:
    needs: tuple[str, ...] = ("head_keys", "representatives")
    selects_once = True

    def __init__(self, task: Task, *options: str) -> None:
        if not task.resident.heads:
            raise UsageError("no retrieval heads are known of this model", "ask with --policy actqkv")
        self._task = task
        self._options = options
        self.scout_layers = 1 + max(head.layer for head in task.resident.heads)
        # As many as are best for all: then there is nothing to share out, and no need to know how.
        self._uniform = "uniform" in options or task.blocks <= BLOCKS
        if self._uniform and "own" not in options:
            self.needs = ("head_keys",)
        self._densities = torch.tensor(task.resident.density)
        self._step: Pass = "scout"
        blocks = -(-task.tokens // task.block_size)
        self._score = torch.zeros(blocks, device=task.resident.device)
        self._count: list[int] = []  # of blocks, by layer
        self._chosen: list[Selection] = []

    def begin(self, step: Pass) -> None:
        if step == "question":
            self._score = self.score(with_neighbours(self._score, self._task.ranked_blocks))
            self._count = self._shares()
            found = {count: whole_sentences(self._task, self._score, count) for count in set(self._count)}
            self._chosen = [found[count] for count in self._count]
        self._step = step

    def score(self, by_heads: Tensor) -> Tensor:
        """The scores `(N,)` that blocks are ranked by, from those of the retrieval heads."""
        return by_heads

    def _shares(self) -> list[int]:
        """Blocks of each layer, by h of those that the scout pass ran through; above, by h's mean at calibration."""
        if self._uniform:
            return [min(self._task.blocks, len(self._task.candidates))] * len(self._densities)
        # No layer has fewer blocks than are best for all: that loses the answer. What goes beyond is better shared out.
        return budget_shares(self._densities, self._task.blocks, len(self._task.candidates), BLOCKS).tolist()

    def select(self, layer: int, queries: Tensor) -> Tensor | Selection:
        if self._step == "scout":
            for head in self._task.resident.heads:
                if head.layer == layer:
                    # The root keeps one head that is very sure from outvoting the others.
                    self._score += head_mass(self._task, layer, head.head, queries).sqrt()
            if not self._uniform:
                self._densities[layer] = density(self._own_scores(layer, queries))
            # The scout attends to the sink, and to a conversation's newest turns. So it was calibrated.
            return torch.empty(0, dtype=torch.int64)
        if self._step == "question" and "own" in self._options:
            self._chosen[layer] = self._with_own(layer, queries)
        return self._chosen[layer]

    def known_blocks(self, layer: int) -> Tensor:
        read = self._step == "question"
        return self._chosen[layer].read(self._task.block_size) if read else torch.empty(0, dtype=torch.int64)

    def _own_scores(self, layer: int, queries: Tensor) -> Tensor:
        """The candidates' scores by the layer's own probe-query: `(C,)`."""
        task = self._task
        return actqkv.candidate_scores(
            activation_probe(queries), task.resident.representatives[layer], task.candidates, task.score
        )

    def _with_own(self, layer: int, queries: Tensor) -> Selection:
        """The best BLOCKS of the ranking, and as many of the layer's own choice as its share has beyond them."""
        candidates, count = self._task.candidates, self._count[layer]
        scores = self._own_scores(layer, queries)
        first = best(self._score[candidates.start : candidates.stop], min(BLOCKS, count), candidates.start)
        scores[first - candidates.start] = torch.inf
        chosen = best(scores, count, candidates.start)
        return Selection(chosen, chosen[:0])

    def ranking(self, mass: Tensor) -> Tensor:
        return self._score.cpu()


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
