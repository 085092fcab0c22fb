"""InfLLM (arXiv 2402.04617): each layer retrieves by its window's mean query over the blocks' most attended keys."""

from torch import Tensor

from actqkv_cli.retrieval.policy import Step, Task, Unforeseen, best
from actqkv_kernels import block_scores

NEEDS = ("anchors",)


class Policy(Unforeseen):
    scout_layers = 0
    settled = False

    def __init__(self, task: Task) -> None:
        self._task = task
        self._anchors = task.resident.method("anchors")

    def begin(self, step: Step) -> None:
        pass

    def select(self, layer: int, queries: Tensor) -> Tensor:
        candidates = self._task.candidates
        anchors = self._anchors[layer, candidates.start : candidates.stop]
        return best(block_scores(queries.float().mean(dim=1), anchors), self._task.blocks, candidates.start)

    def ranking(self, mass: Tensor) -> Tensor:
        return mass
