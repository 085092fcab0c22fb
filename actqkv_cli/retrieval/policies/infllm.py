"""InfLLM (arXiv 2402.04617): each layer retrieves by its window's mean query over the blocks' most attended keys."""

from torch import Tensor

from actqkv_cli.retrieval.policy import PerToken, Task
from actqkv_kernels import block_scores

OPTIONS = PerToken.EVERY


class Policy(PerToken):
    needs = ("anchors",)

    def __init__(self, task: Task, *options: str) -> None:
        super().__init__(task, options)
        (self._anchors,) = task.resident.tensors(*self.needs)

    def scores(self, layer: int, queries: Tensor) -> Tensor:
        candidates = self.task.candidates
        return block_scores(queries.float().mean(dim=1), self._anchors[layer, candidates.start : candidates.stop])
