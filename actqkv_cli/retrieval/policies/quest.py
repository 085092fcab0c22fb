"""Quest (arXiv 2406.10774): each layer retrieves the blocks whose keys' bounds promise most.

As published but for three things that our store fixes: the bounds are of un-rotated keys, a selection is shared by
a layer's heads, and no layer is left dense, so that the budget is that of the others.
"""

from torch import Tensor

from actqkv_cli.retrieval.policy import PerToken, Task
from actqkv_kernels import bound_scores

OPTIONS = PerToken.EVERY


class Policy(PerToken):
    needs = ("bounds",)

    def __init__(self, task: Task, *options: str) -> None:
        super().__init__(task, options)
        (self._bounds,) = task.resident.tensors(*self.needs)

    def scores(self, layer: int, queries: Tensor) -> Tensor:
        candidates = self.task.candidates
        return bound_scores(queries, self._bounds[layer, candidates.start : candidates.stop])
