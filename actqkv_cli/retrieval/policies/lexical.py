"""BM25 over the stored text: the blocks that share words with the question, as a measure of what the model adds."""

from torch import Tensor

from actqkv_cli.retrieval.lexical import lexical_scores
from actqkv_cli.retrieval.policy import Pass, Selection, Task
from actqkv_cli.retrieval.whole import best_spans

BLOCKS = 16


class Policy:
    needs = ()
    scout_layers = 0
    selects_once = True

    def __init__(self, task: Task) -> None:
        self._scores = lexical_scores(task)
        self._chosen = best_spans(task, self._scores, task.block_budget, length=1)
        self._read = self._chosen.read(task.block_size)

    def begin(self, step: Pass) -> None:
        pass

    def select(self, layer: int, queries: Tensor) -> Selection:
        return self._chosen

    def known_blocks(self, layer: int) -> Tensor:
        return self._read

    def ranking(self, mass: Tensor) -> Tensor:
        return self._scores
