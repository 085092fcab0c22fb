"""Full attention: every block, as a measure of what retrieval loses."""

from dataclasses import replace

import torch

from actqkv_cli.retrieval.fixed import FixedScores
from actqkv_cli.retrieval.policy import Task


class Policy(FixedScores):
    def __init__(self, task: Task) -> None:
        everything = replace(task, block_budget=len(task.candidates))
        super().__init__(everything, torch.arange(task.candidates.stop))
