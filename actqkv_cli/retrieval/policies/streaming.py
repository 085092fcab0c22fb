"""StreamingLLM (arXiv 2309.17453): the sink and the newest tokens, as a measure of what retrieval gains."""

import torch

from actqkv_cli.retrieval.fixed import FixedScores
from actqkv_cli.retrieval.policy import Task


class Policy(FixedScores):
    def __init__(self, task: Task) -> None:
        super().__init__(task, torch.arange(task.candidates.stop))
