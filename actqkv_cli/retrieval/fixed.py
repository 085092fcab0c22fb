"""What the policies share that know their blocks before the first layer runs."""

from torch import Tensor

from actqkv_cli.retrieval.policy import Pass, Task, best


class FixedScores:
    """Each layer has the best blocks by scores that no query changes. scores: `(L, N)` or, for all alike, `(N,)`."""

    needs: tuple[str, ...] = ()
    scout_layers = 0
    selects_once = True

    def __init__(self, task: Task, scores: Tensor) -> None:
        candidates = task.candidates
        layers = task.resident.layers
        ours = scores.expand(layers, -1)[:, candidates.start : candidates.stop]
        if scores.dim() == 1:
            self._chosen = [best(ours[0], task.block_budget, candidates.start)] * layers
        else:
            self._chosen = [best(layer, task.block_budget, candidates.start) for layer in ours]

    def begin(self, step: Pass) -> None:
        pass

    def select(self, layer: int, queries: Tensor) -> Tensor:
        return self._chosen[layer]

    def known_blocks(self, layer: int) -> Tensor:
        return self._chosen[layer]

    def ranking(self, mass: Tensor) -> Tensor:
        return mass
