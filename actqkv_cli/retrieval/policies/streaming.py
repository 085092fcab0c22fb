"""StreamingLLM: sink and local window alone, as a measure of what retrieval gains."""

import torch
from torch import Tensor

from actqkv_cli.retrieval.policy import Step, Task


class Policy:
    scout_layers = 0

    def __init__(self, task: Task) -> None:
        self._nothing = torch.arange(0)

    def begin(self, step: Step) -> None:
        pass

    def select(self, layer: int, queries: Tensor) -> Tensor:
        return self._nothing

    def ranking(self, mass: Tensor) -> Tensor:
        return mass
