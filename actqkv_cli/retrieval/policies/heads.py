"""Retrieval heads (DESIGN section 4): a few heads of the model rank all blocks, and every layer attends to the best.

Two passes, as in ACRE: a scout pass runs the question through the layers up to the last retrieval head and yields
one ranking; in the answer pass each layer has the first blocks of it, as many as the dynamic cut-off gives it.
"""

import torch
from torch import Tensor

from actqkv_cli.errors import UsageError
from actqkv_cli.retrieval.policies import actqkv
from actqkv_cli.retrieval.policy import Step, Task, best
from actqkv_kernels import budget_shares

_QUERY_CHUNK = 32  # question tokens scored at a time: bounds the scores to 32 x T


class Policy:
    def __init__(self, task: Task) -> None:
        if not task.resident.heads:
            raise UsageError("no retrieval heads are known of this model", "ask with --policy actqkv")
        self._task = task
        self.scout_layers = 1 + max(head.layer for head in task.resident.heads)
        self._scout = actqkv.Policy(task)
        self._step: Step = "scout"
        blocks = -(-task.tokens // task.block_size)
        self._score = torch.zeros(blocks, device=task.resident.representatives.device)
        self._blocks = [0] * len(task.resident.representatives)

    def begin(self, step: Step) -> None:
        if step == "question":
            self._share_budget()
        self._step = step

    def _share_budget(self) -> None:
        """By h of the layers that the scout pass ran through; for those above, by their mean at calibration."""
        densities = torch.tensor(self._task.resident.density)
        densities[: self.scout_layers] = self._scout.densities[: self.scout_layers]
        self._blocks = budget_shares(densities, self._task.blocks, len(self._task.candidates)).tolist()

    def select(self, layer: int, queries: Tensor) -> Tensor:
        if self._step == "scout":
            for head in self._task.resident.heads:
                if head.layer == layer:
                    self._score += head_mass(self._task, layer, head.head, queries).sqrt()
            return self._scout.select(layer, queries)
        candidates = self._task.candidates
        return best(self._score[candidates.start : candidates.stop], self._blocks[layer], candidates.start)

    def ranking(self, mass: Tensor) -> Tensor:
        return self._score.cpu()


def head_mass(task: Task, layer: int, head: int, queries: Tensor) -> Tensor:
    """Attention of one retrieval head from a question to every block. queries: `(H, W, d)`. Returns `(N,)` fp32."""
    resident = task.resident
    assert resident.head_keys is not None
    kv_head = head * resident.representatives.shape[3] // resident.query_heads
    keys = resident.head_keys[resident.head_rows.index((layer, kv_head))]
    return question_mass(queries[head : head + 1, task.own], keys[None], task)[0]


def question_mass(queries: Tensor, keys: Tensor, task: Task) -> Tensor:
    """Un-rotated attention from a question's own tokens to every block, a head at a time.

    queries: `(H, Wq, d)`, keys: `(H, >= T, d)`. Softmax over all tokens behind the sink, averaged over the
    question's tokens, summed per block: `(H, N)` fp32.
    """
    keys = keys[:, task.ranked_from : task.tokens].float()
    mass = keys.new_zeros(len(keys), task.tokens)
    for chunk in queries.split(_QUERY_CHUNK, dim=1):
        scores = chunk.float() @ keys.mT * queries.shape[-1] ** -0.5
        mass[:, task.ranked_from :] += torch.softmax(scores, dim=-1).sum(dim=1)
    return block_sums(mass / max(queries.shape[1], 1), task.block_size)


def block_sums(mass: Tensor, block_size: int) -> Tensor:
    """Sums of `(..., T)` over blocks, the last may be short: `(..., ceil(T / block_size))`."""
    return torch.nn.functional.pad(mass, (0, -mass.shape[-1] % block_size)).unflatten(-1, (-1, block_size)).sum(-1)
