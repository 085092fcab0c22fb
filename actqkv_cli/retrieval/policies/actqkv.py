"""ActQKV (arXiv 2502.13542): each layer retrieves by its window's queries, those that stand out weighing more; while
decoding, the dynamic cut-off shares the budget over layers.

A block's score is a vote: the share of attention that every head would give it, for each of the question's own tokens,
then for each token of the answer. The paper's sum of raw products lets the loudest heads drown those that know.

The paper gives more blocks to layers of flat scores. With its products that lost to an even split, and the reverse won:
a layer that tells blocks apart has use for more of them. So the shares follow sharpness, one less the density; whether
that helps with votes is not known yet.

Options, for ablation: `paper` is the published form, raw products and shares by density; `probe` has one vote per head,
of the probe-query; `mean` weighs all tokens alike, `uniform` shares the budget evenly. `every4` and `every16` select
anew only for each fourth or sixteenth token of an answer.
"""

from typing import Literal

import torch
from torch import Tensor

from actqkv_cli.retrieval.policy import Pass, PerToken, Task, best
from actqkv_kernels import activation_probe, block_scores, block_votes, budget_shares, density
from actqkv_kernels.activation_probe import activation_weights

OPTIONS = frozenset({"paper", "probe", "mean", "uniform"}) | PerToken.EVERY
_MIN_SHARPNESS = 0.02  # no layer's weight is nothing


class Policy(PerToken):
    needs = ("representatives",)

    def __init__(self, task: Task, *options: str) -> None:
        super().__init__(task, options)
        self._options = options
        layers, device = task.resident.layers, task.resident.device
        self.densities = torch.zeros(layers, device=device)
        self._shares = torch.full((layers,), task.block_budget, device=device)
        self._asking = False

    def begin(self, step: Pass) -> None:
        """A decoding step shares out the budget by the densities of the step before it; a question, evenly."""
        super().begin(step)
        self._asking = step == "question"
        if step == "decode" and self.selects and "uniform" not in self._options:
            wanted = self.densities if "paper" in self._options else 1 - self.densities + _MIN_SHARPNESS
            self._shares.copy_(budget_shares(wanted, self.task.block_budget, len(self.task.candidates)))

    def scores(self, layer: int, queries: Tensor) -> Tensor:
        """Votes, of all candidates together 1; by `paper` products."""
        task, options = self.task, self._options
        representatives = task.resident.representatives[layer, task.candidates.start : task.candidates.stop]
        if "paper" in options:
            probe = queries.float().mean(dim=1) if "mean" in options else activation_probe(queries)
            scores = block_scores(probe, representatives, task.score)
            self.densities[layer] = density(scores)
            return scores
        if self._asking and queries[:, task.own].numel():  # the template is the same whatever is asked
            queries = queries[:, task.own]
        if "mean" in options:
            weights = queries.new_full(queries.shape[1:2], 1 / queries.shape[1], dtype=torch.float32)
        else:
            weights = activation_weights(queries)
        if "probe" in options:
            queries, weights = (weights @ queries.float())[:, None], weights.new_ones(1)
        votes = block_votes(queries, representatives[:, 0], weights)
        self.densities[layer] = density(votes.log())  # whose softmax they are
        return votes

    def block_budget(self, layer: int) -> Tensor:
        return self._shares[layer]

    def max_blocks(self) -> int:
        return min(2 * self.task.block_budget, len(self.task.candidates))


def top_blocks(
    queries: Tensor, representatives: Tensor, candidates: range, count: int, score: Literal["dot", "cosine"]
) -> Tensor:
    """Ids of the `count` candidates that a window's queries `(H, W, d)` want most by their probe-query, ascending, on
    the CPU. representatives: `(N, 1, Hkv, d)`."""
    if count >= len(candidates):
        return torch.arange(candidates.start, candidates.stop)
    scores = block_scores(activation_probe(queries), representatives[candidates.start : candidates.stop], score)
    return best(scores, count, candidates.start)
