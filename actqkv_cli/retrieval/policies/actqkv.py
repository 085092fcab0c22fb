"""ActQKV: each layer retrieves by its window's probe-query; while decoding, the dynamic cut-off shares the budget."""

from typing import Literal

import torch
from torch import Tensor

from actqkv_cli.retrieval.policy import Step, Task, best
from actqkv_kernels import activation_probe, block_scores, budget_shares, density


class Policy:
    scout_layers = 0

    def __init__(self, task: Task) -> None:
        self._task = task
        layers = len(task.resident.representatives)
        self.densities = torch.zeros(layers)
        self._blocks = [task.blocks] * layers

    def begin(self, step: Step) -> None:
        """A decoding step shares out the budget by the densities of the step before it; a question, evenly."""
        if step == "decode":
            shares = budget_shares(self.densities, self._task.blocks, len(self._task.candidates))
            self._blocks = shares.tolist()

    def select(self, layer: int, queries: Tensor) -> Tensor:
        task = self._task
        scores = candidate_scores(queries, task.resident.representatives[layer], task.candidates, task.score)
        self.densities[layer] = density(scores)
        return best(scores, self._blocks[layer], task.candidates.start)

    def ranking(self, mass: Tensor) -> Tensor:
        return mass


def candidate_scores(
    queries: Tensor, representatives: Tensor, candidates: range, score: Literal["dot", "cosine"]
) -> Tensor:
    """A window's probe-query against the candidates' representatives, one layer.

    queries: `(H, W, d)`, un-rotated; representatives: `(N, R, Hkv, d)`. Returns `(C,)` fp32.
    """
    return block_scores(activation_probe(queries), representatives[candidates.start : candidates.stop], score)


def top_blocks(
    queries: Tensor, representatives: Tensor, candidates: range, count: int, score: Literal["dot", "cosine"]
) -> Tensor:
    """Ids of the `count` candidates that a window wants most, ascending, on the CPU."""
    if count >= len(candidates):
        return torch.arange(candidates.start, candidates.stop)
    return best(candidate_scores(queries, representatives, candidates, score), count, candidates.start)
