"""A document in use: what stays in memory of it, and a bounded cache in front of its blocks."""

import functools
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from actqkv_cli.engine.blocks import BlockPool
from actqkv_cli.retrieval.lexical import lexical_index
from actqkv_cli.retrieval.whole import sentence_tokens
from actqkv_cli.store.reader import DocumentReader


class OpenDocument:
    """An open document: on `device`, what was asked for of its tensors, and its pool of blocks.

    lexical: the BM25 scores `(N,)` of the blocks for a question's text; sentences: the tokens of those that have a part
    in a block; both are made at their first use.
    """

    def __init__(self, reader: DocumentReader, device: torch.device) -> None:
        self.reader = reader
        self.tokens = reader.manifest.tokens
        self._device, self._tensors = device, dict[str, Tensor]()
        self.pool = BlockPool(
            functools.partial(reader.read_blocks, pinned=device.type == "cuda"),
            reader.manifest.geometry.layers,
            reader.manifest.block_count,
            device,
        )

        @functools.cache
        def words() -> Callable[[str], Tensor]:
            return lexical_index(reader)

        @functools.cache
        def sentences() -> Callable[[int], range]:
            return sentence_tokens(reader)

        self.lexical: Callable[[str], Tensor] = lambda question: words()(question)
        self.sentences: Callable[[int], range] = lambda block: sentences()(block)

    def load(self, names: Collection[str]) -> Mapping[str, Tensor]:
        """The tensors of `store.tensors` that were asked for until now, those of `names` included as far as the
        document has them."""
        if missing := {*names} - self._tensors.keys():
            self._tensors |= {name: found.to(self._device) for name, found in self.reader.tensors(missing).items()}
        return self._tensors

    @property
    def bytes_held(self) -> int:
        """Memory that its tensors and its blocks take, in bytes; text and words are little beside them."""
        return sum(tensor.nbytes for tensor in self._tensors.values()) + self.pool.bytes_held

    def close(self) -> None:
        """Close its files, which are opened again if they are needed. What was read stays in memory."""
        self.pool.stop_prefetching()
        self.reader.close()

    def blocks(self, layer: int, ids: Tensor) -> Tensor:
        """See `BlockPool.blocks`."""
        return self.pool.blocks(layer, ids)

    def prefetch(self, layer: int, ids: Tensor) -> None:
        """See `BlockPool.prefetch`."""
        self.pool.prefetch(layer, ids)
