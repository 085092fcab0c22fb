"""InfLLM (arXiv 2402.04617): each layer retrieves by its window's mean query over the blocks' most attended keys."""

from torch import Tensor

from actqkv_cli.retrieval.policy import PerToken, Task
from actqkv_kernels import block_scores

OPTIONS = PerToken.EVERY
NEEDS = ("anchors",)


class Policy(PerToken):
    def __init__(self, task: Task, *options: str) -> None:
        super().__init__(task, options)
        self._anchors = task.resident.method("anchors")

    def scores(self, layer: int, queries: Tensor) -> Tensor:
        candidates = self.task.candidates
        return block_scores(queries.float().mean(dim=1), self._anchors[layer, candidates.start : candidates.stop])
