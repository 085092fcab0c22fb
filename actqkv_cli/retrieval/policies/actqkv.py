"""ActQKV: each layer retrieves by its window's probe-query; while decoding, the dynamic cut-off shares the budget.

The paper gives more blocks to layers of flat scores. Measured, that loses to an even split, and the reverse wins: a
layer that tells blocks apart has use for more of them. So the shares follow sharpness, one less the density.

Options, for ablation: `mean` retrieves by the mean query instead, `uniform` shares the budget evenly.
"""

from typing import Literal

import torch
from torch import Tensor

from actqkv_cli.retrieval.policy import Step, Task, Unforeseen, best
from actqkv_kernels import activation_probe, block_scores, budget_shares, density

OPTIONS = frozenset({"mean", "uniform"})
NEEDS = ("representatives",)
_LEAST_SHARPNESS = 0.02  # no layer's weight is nothing


class Policy(Unforeseen):
    scout_layers = 0
    settled = False

    def __init__(self, task: Task, *options: str) -> None:
        self._task = task
        self._options = options
        layers = len(task.resident.representatives)
        self.densities = torch.zeros(layers)
        self._blocks = [task.blocks] * layers

    def begin(self, step: Step) -> None:
        """A decoding step shares out the budget by the densities of the step before it; a question, evenly."""
        if step == "decode" and "uniform" not in self._options:
            sharpness = 1 - self.densities + _LEAST_SHARPNESS
            shares = budget_shares(sharpness, self._task.blocks, len(self._task.candidates))
            self._blocks = shares.tolist()

    def select(self, layer: int, queries: Tensor) -> Tensor:
        task = self._task
        probe = queries.float().mean(dim=1) if "mean" in self._options else activation_probe(queries)
        scores = candidate_scores(probe, task.resident.representatives[layer], task.candidates, task.score)
        self.densities[layer] = density(scores)
        return best(scores, self._blocks[layer], task.candidates.start)

    def ranking(self, mass: Tensor) -> Tensor:
        return mass


def candidate_scores(
    probe: Tensor, representatives: Tensor, candidates: range, score: Literal["dot", "cosine"]
) -> Tensor:
    """A probe-query `(H, d)` against the candidates' representatives `(N, R, Hkv, d)`, one layer: `(C,)` fp32."""
    return block_scores(probe, representatives[candidates.start : candidates.stop], score)


def top_blocks(
    queries: Tensor, representatives: Tensor, candidates: range, count: int, score: Literal["dot", "cosine"]
) -> Tensor:
    """Ids of the `count` candidates that a window's queries `(H, W, d)` want most, ascending, on the CPU."""
    if count >= len(candidates):
        return torch.arange(candidates.start, candidates.stop)
    scores = candidate_scores(activation_probe(queries), representatives, candidates, score)
    return best(scores, count, candidates.start)
