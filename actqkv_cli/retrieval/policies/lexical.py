"""BM25 over the stored text: the blocks that share words with the question, as a measure of what the model adds."""

from torch import Tensor

from actqkv_cli.retrieval.policy import Pass, Selection, Task
from actqkv_cli.retrieval.whole import best_spans

BLOCKS = 16
BEFORE = 0.5


class Policy:
    needs = ()
    scout_layers = 0
    selects_once = True

    def __init__(self, task: Task) -> None:
        self._scores = lexical_scores(task)
        self._chosen = best_spans(task, self._scores, task.blocks, length=1)
        self._read = self._chosen.read(task.block_size)

    def begin(self, step: Pass) -> None:
        pass

    def select(self, layer: int, queries: Tensor) -> Selection:
        return self._chosen

    def known_blocks(self, layer: int) -> Tensor:
        return self._read

    def ranking(self, mass: Tensor) -> Tensor:
        return self._scores


def lexical_scores(task: Task) -> Tensor:
    """BM25 of every block for the question, `(N,)` fp32 on the CPU, >= 0; those that may not be ranked have 0.

    "When was it finished?" says nothing of what it is about: the turn before it counts too, for half.
    """
    assert task.resident.lexical is not None
    scores = task.resident.lexical(task.text)
    if task.before:
        scores = scores + BEFORE * task.resident.lexical(task.before)
    return scores * task.ranked_blocks
