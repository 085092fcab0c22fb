"""ActQKV: each layer retrieves by its window's probe-query; while decoding, the dynamic cut-off shares the budget.

The paper gives more blocks to layers of flat scores. Measured, that loses to an even split, and the reverse wins: a
layer that tells blocks apart has use for more of them. So the shares follow sharpness, one less the density.

Options, for ablation: `mean` retrieves by the mean query instead, `uniform` shares the budget evenly. `every4` and
`every16` select anew only for each fourth or sixteenth token of an answer.
"""

from typing import Literal

import torch
from torch import Tensor

from actqkv_cli.retrieval.policy import Pass, PerToken, Task, best
from actqkv_kernels import activation_probe, block_scores, budget_shares, density

OPTIONS = frozenset({"mean", "uniform"}) | PerToken.EVERY
_MIN_SHARPNESS = 0.02  # no layer's weight is nothing


class Policy(PerToken):
    needs = ("representatives",)

    def __init__(self, task: Task, *options: str) -> None:
        super().__init__(task, options)
        self._options = options
        layers, device = task.resident.layers, task.resident.device
        self.densities = torch.zeros(layers, device=device)
        self._shares = torch.full((layers,), task.block_budget, device=device)

    def begin(self, step: Pass) -> None:
        """A decoding step shares out the budget by the densities of the step before it; a question, evenly."""
        super().begin(step)
        if step == "decode" and self.selects and "uniform" not in self._options:
            sharpness = 1 - self.densities + _MIN_SHARPNESS
            self._shares.copy_(budget_shares(sharpness, self.task.block_budget, len(self.task.candidates)))

    def scores(self, layer: int, queries: Tensor) -> Tensor:
        task = self.task
        probe = queries.float().mean(dim=1) if "mean" in self._options else activation_probe(queries)
        scores = candidate_scores(probe, task.resident.representatives[layer], task.candidates, task.score)
        self.densities[layer] = density(scores)
        return scores

    def block_budget(self, layer: int) -> Tensor:
        return self._shares[layer]

    def max_blocks(self) -> int:
        return min(2 * self.task.block_budget, len(self.task.candidates))


def candidate_scores(
    probe: Tensor, representatives: Tensor, candidates: range, score: Literal["dot", "cosine"]
) -> Tensor:
    """A probe-query `(H, d)` against the candidates' representatives `(N, 1, Hkv, d)`, one layer: `(C,)` fp32."""
    return block_scores(probe, representatives[candidates.start : candidates.stop], score)


def top_blocks(
    queries: Tensor, representatives: Tensor, candidates: range, count: int, score: Literal["dot", "cosine"]
) -> Tensor:
    """Ids of the `count` candidates that a window's queries `(H, W, d)` want most, ascending, on the CPU."""
    if count >= len(candidates):
        return torch.arange(candidates.start, candidates.stop)
    scores = candidate_scores(activation_probe(queries), representatives, candidates, score)
    return best(scores, count, candidates.start)
