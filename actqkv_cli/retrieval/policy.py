"""What a retrieval policy is, and what it may look at."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from actqkv_cli.errors import UsageError
from actqkv_cli.store.manifest import RetrievalHead
from actqkv_kernels import TopBlocks, top_blocks

Pass = Literal["scout", "question", "decode"]


@dataclass(frozen=True)
class Resident:
    """What stays in memory of a document: enough to score every block without reading one.

    load: from names to the tensors of `store.tensors` that the document has by them, see `tensors`; device: where these
    are; heads: the model's retrieval heads, best first, whose kv heads head_rows names as (layer, kv head); lexical:
    BM25 scores `(N,)` fp32 of the blocks for a question's text; sentences: the tokens of those that have a part in a
    block, see `whole`. What is loaded, and the last two, are made at their first use.
    """

    layers: int
    num_blocks: int
    kv_heads: int
    query_heads: int
    device: torch.device
    load: Callable[[Collection[str]], Mapping[str, Tensor]]
    heads: tuple[RetrievalHead, ...] = ()
    lexical: Callable[[str], Tensor] | None = None
    sentences: Callable[[int], range] | None = None

    @property
    def head_rows(self) -> list[tuple[int, int]]:
        return head_rows(self.heads, self.query_heads, self.kv_heads)

    def tensors(self, *names: str) -> list[Tensor]:
        """Tensors of `store.tensors`. Raises UsageError if the document was read without one."""
        found = self.load(names)
        if missing := [name for name in names if name not in found]:
            raise UsageError(
                f"the document was read without what this policy needs ({missing[0]})",
                "ingest it again with --baselines, or choose another --policy",
            )
        return [found[name] for name in names]

    @property
    def representatives(self) -> Tensor:
        """`(L, N, 1, Hkv, d)`"""
        return self.tensors("representatives")[0]

    @property
    def head_keys(self) -> Tensor:
        """`(rows, T, d)`: the keys of `head_rows`."""
        return self.tensors("head_keys")[0]


def head_rows(heads: Sequence[RetrievalHead], query_heads: int, kv_heads: int) -> list[tuple[int, int]]:
    """The (layer, kv head) pairs whose keys the retrieval heads look at, in the order of the rows of `head_keys`."""
    return sorted({(head.layer, kv_head(head.head, query_heads, kv_heads)) for head in heads})


def kv_head(head: int, query_heads: int, kv_heads: int) -> int:
    """The kv head whose keys a query head looks at."""
    return head * kv_heads // query_heads


@dataclass(frozen=True)
class Task:
    """One question to one document, as a policy sees it.

    candidates: the blocks behind the sink, and before the newest turns of a conversation; block_budget: how many of
    them a layer may have, on average; unranked: tokens that may not be ranked, int64 on the CPU: the sink, at which
    every head looks whatever is asked; own: the question's own tokens in its window (template left out); text: the
    question itself; before: the turn of the conversation that it follows.
    """

    resident: Resident
    candidates: range
    block_budget: int
    block_size: int
    tokens: int
    unranked: Tensor
    own: slice
    text: str = ""
    before: str = ""
    score: Literal["dot", "cosine"] = "dot"

    @property
    def ranked_blocks(self) -> Tensor:
        """Which blocks hold a token that may be ranked: bool `(N,)` on the CPU."""
        blocks = -(-self.tokens // self.block_size)
        return torch.bincount(self.unranked // self.block_size, minlength=blocks) < self.block_size


@dataclass(frozen=True)
class Selection:
    """Blocks to attend to, and single tokens beside them.

    blocks: ascending ids of candidates, int64 on the CPU; tokens: `(m,)` int64 on the CPU, tokens of the document
    that stand in none of the blocks; states: their keys and values `(2, Hkv, m, d)`, keys un-rotated, where
    they are not to be read from their own blocks.
    """

    blocks: Tensor
    tokens: Tensor
    states: Tensor | None = None

    def read(self, block_size: int) -> Tensor:
        """Ids of the blocks that are read for it, ascending."""
        if self.states is not None or not len(self.tokens):
            return self.blocks
        return torch.cat([self.blocks, self.tokens // block_size]).unique()


class RetrievalPolicy(Protocol):
    """A retrieval method. The session calls `begin` before each pass over the layers, `select` in each layer.

    needs: the tensors of `store.tensors` that it keeps in memory, of the class the most that it may need; scout_layers:
    how many layers a first, scouting pass over the question needs, 0 for none; selects_once: whether what was selected
    for the question stays for the answer.
    """

    scout_layers: int
    selects_once: bool

    @property
    def needs(self) -> tuple[str, ...]: ...

    def begin(self, step: Pass) -> None: ...

    def select(self, layer: int, queries: Tensor) -> Tensor | Selection:
        """Ids of the candidates to attend to, ascending, on the CPU; or with tokens beside them. queries: `(H, W, d)`,
        un-rotated."""
        ...

    def known_blocks(self, layer: int) -> Tensor:
        """Ids of the candidates that a layer will select in the step that began, if that is known by now: they are
        read ahead."""
        ...

    def ranking(self, mass: Tensor) -> Tensor:
        """A score `(N,)` fp32 on the CPU for each block of the document; sources are the best that were attended.

        mass: `(N,)`, the attention that each block received from the question, mean over layers and heads.
        """
        ...


class QueryDriven:
    """A policy that selects by each layer's own queries."""

    def known_blocks(self, layer: int) -> Tensor:
        return torch.empty(0, dtype=torch.int64)


class PerToken(QueryDriven):
    """A policy by which every layer selects anew for each token, or, with the option `every4` or `every16`, for each
    fourth or sixteenth. What it selects can stay on the device."""

    needs: tuple[str, ...] = ()
    scout_layers = 0
    selects_once = False
    EVERY = frozenset({"every4", "every16"})

    def __init__(self, task: Task, options: Sequence[str] = ()) -> None:
        self.task = task
        self._every = next((int(option.removeprefix("every")) for option in options if option in self.EVERY), 1)
        self._token = -1
        self.chosen: dict[int, Tensor] = {}  # by layer, what it selected last

    def begin(self, step: Pass) -> None:
        self._token = self._token + 1 if step == "decode" else -1

    @property
    def keeps(self) -> bool:
        """Whether what is selected is to stay for more than a token."""
        return self._every > 1

    @property
    def selects(self) -> bool:
        """Whether layers select anew in the step that began."""
        return self._token % self._every == 0 or self._token < 0

    def scores(self, layer: int, queries: Tensor) -> Tensor:
        """The candidates' scores `(C,)` fp32, for queries `(H, W, d)`."""
        raise NotImplementedError

    def block_budget(self, layer: int) -> int | Tensor:
        """How many blocks the layer may have: a number, or `()` integer on the device."""
        return self.task.block_budget

    def max_blocks(self) -> int:
        """How many blocks any layer may have."""
        return min(self.task.block_budget, len(self.task.candidates))

    def choose(self, layer: int, queries: Tensor) -> TopBlocks:
        """As `select`, and nothing waits for the device."""
        budget, first = self.block_budget(layer), self.task.candidates.start
        return top_blocks(self.scores(layer, queries), budget, first, self.max_blocks())

    def select(self, layer: int, queries: Tensor) -> Tensor:
        if self.selects or layer not in self.chosen:
            chosen = self.choose(layer, queries)
            self.chosen[layer] = chosen.ids[chosen.ids >= 0].long().cpu()
        return self.chosen[layer]

    def ranking(self, mass: Tensor) -> Tensor:
        return mass


def strength(ranking: Tensor) -> float:
    """By how many deviations the best block of a ranking `(N,)` stands above their mean; 0 where all are alike."""
    spread = float(ranking.std(correction=0))
    return float(ranking.max() - ranking.mean()) / spread if spread > 0 else 0.0


def best(scores: Tensor, count: int, first: int) -> Tensor:
    """Ids of the `count` best of the candidates, ascending, on the CPU. scores: `(C,)`, from block `first` on."""
    if count >= scores.numel():
        return torch.arange(first, first + scores.numel())
    return top_blocks(scores.float(), count, first).ids.long().cpu()
