"""Full attention: every block, as a measure of what retrieval loses."""

import torch
from torch import Tensor

from actqkv_cli.retrieval.policy import Step, Task


class Policy:
    scout_layers = 0

    def __init__(self, task: Task) -> None:
        self._candidates = torch.arange(task.candidates.start, task.candidates.stop)

    def begin(self, step: Step) -> None:
        pass

    def select(self, layer: int, queries: Tensor) -> Tensor:
        return self._candidates

    def ranking(self, mass: Tensor) -> Tensor:
        return mass
