"""Quest (arXiv 2406.10774): each layer retrieves the blocks whose keys' bounds promise most.

As published but for three things that our store fixes: the bounds are of un-rotated keys, a selection is shared by
a layer's heads, and no layer is left dense, so that the budget is that of the others.
"""

from torch import Tensor

from actqkv_cli.retrieval.policy import Step, Task, Unforeseen, best
from actqkv_kernels import bound_scores

NEEDS = ("bounds",)


class Policy(Unforeseen):
    scout_layers = 0
    settled = False

    def __init__(self, task: Task) -> None:
        self._task = task
        self._bounds = task.resident.method("bounds")

    def begin(self, step: Step) -> None:
        pass

    def select(self, layer: int, queries: Tensor) -> Tensor:
        candidates = self._task.candidates
        bounds = self._bounds[layer, candidates.start : candidates.stop]
        return best(bound_scores(queries, bounds), self._task.blocks, candidates.start)

    def ranking(self, mass: Tensor) -> Tensor:
        return mass
