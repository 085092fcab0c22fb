"""SnapKV (arXiv 2404.14469): the blocks that the document's last 32 tokens look at.

The document is read without knowing the question, so its own last tokens are the observation window; one selection
for all questions, per layer, shared by the heads.
"""

from actqkv_cli.retrieval.fixed import FixedScores
from actqkv_cli.retrieval.policy import Task


class Policy(FixedScores):
    needs = ("snapkv",)

    def __init__(self, task: Task) -> None:
        super().__init__(task, *task.resident.tensors(*self.needs))
