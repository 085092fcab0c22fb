"""H2O (arXiv 2306.14048): the blocks that received most attention while the document was read.

One selection for all questions, as an evicted cache has it; per layer, shared by the heads. The sums count every
window that attended to a block, so they favour what was read early, as the method does.
"""

from actqkv_cli.retrieval.fixed import FixedScores
from actqkv_cli.retrieval.policy import Task


class Policy(FixedScores):
    needs = ("h2o",)

    def __init__(self, task: Task) -> None:
        super().__init__(task, *task.resident.tensors(*self.needs))
