"""What a retrieval policy is, and what it may look at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from actqkv_cli.store.manifest import RetrievalHead

Step = Literal["scout", "question", "decode"]


@dataclass(frozen=True)
class Resident:
    """What stays in memory of a document: enough to score every block without reading one.

    representatives: `(L, N, R, Hkv, d)`; heads: the model's retrieval heads, best first; head_keys: `(rows, T, d)`,
    the un-rotated keys of their kv heads, which head_rows names as (layer, kv head); query_heads: of the model;
    density: one number a layer, the mean information density at calibration.
    """

    representatives: Tensor
    query_heads: int
    heads: tuple[RetrievalHead, ...] = ()
    head_keys: Tensor | None = None
    density: tuple[float, ...] = ()

    @property
    def head_rows(self) -> list[tuple[int, int]]:
        return head_rows(self.heads, self.query_heads, self.representatives.shape[3])


def head_rows(heads: Sequence[RetrievalHead], query_heads: int, kv_heads: int) -> list[tuple[int, int]]:
    """The (layer, kv head) pairs whose keys the retrieval heads look at, in the order of the rows of `head_keys`."""
    return sorted({(head.layer, kv_head(head.head, query_heads, kv_heads)) for head in heads})


def kv_head(head: int, query_heads: int, kv_heads: int) -> int:
    """The kv head whose keys a query head looks at."""
    return head * kv_heads // query_heads


@dataclass(frozen=True)
class Task:
    """One question to one document, as a policy sees it.

    candidates: the blocks between sink and local window; blocks: how many of them a layer may have, on average;
    ranked_from: the first token that may be ranked, behind the sink; own: the question's own tokens in its window
    (template left out).
    """

    resident: Resident
    candidates: range
    blocks: int
    block_size: int
    tokens: int
    ranked_from: int
    own: slice
    score: Literal["dot", "cosine"] = "dot"


class RetrievalPolicy(Protocol):
    """A retrieval method. The session calls `begin` before each pass over the layers, `select` in each layer.

    scout_layers: how many layers a first, scouting pass over the question needs; 0 for none.
    """

    scout_layers: int

    def begin(self, step: Step) -> None: ...

    def select(self, layer: int, queries: Tensor) -> Tensor:
        """Ids of the candidates to attend to, ascending, on the CPU. queries: `(H, W, d)`, un-rotated."""
        ...

    def ranking(self, mass: Tensor) -> Tensor:
        """A score `(N,)` fp32 on the CPU for each block of the document; sources are the best that were attended.

        mass: `(N,)`, the attention that each block received from the question, mean over layers and heads.
        """
        ...


def best(scores: Tensor, count: int, first: int) -> Tensor:
    """Ids of the `count` best of the candidates, ascending, on the CPU. scores: `(C,)`, from block `first` on."""
    if count >= scores.numel():
        return torch.arange(first, first + scores.numel())
    return scores.topk(count).indices.sort().values.cpu() + first
