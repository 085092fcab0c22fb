"""A document in use: what stays in memory of it, and a bounded cache in front of its blocks."""

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from actqkv_cli.engine.blocks import BlockPool
from actqkv_cli.errors import StoreDamaged
from actqkv_cli.retrieval.lexical import lexical_index
from actqkv_cli.retrieval.whole import sentence_tokens
from actqkv_cli.store.reader import DocumentReader


class OpenDocument:
    """An open document's resident tensors on `device`.

    representatives: `(L, N, R, Hkv, d)`; head_keys: `(rows, T, d)` or None; methods: see `engine.methods`, and
    lexical: the BM25 scores `(N,)` of the blocks for a question's text, and sentences: the tokens of those that have a
    part in a block; all three are loaded at their first use.
    """

    def __init__(self, reader: DocumentReader, device: torch.device) -> None:
        self.reader = reader
        self.tokens = reader.manifest.tokens
        held = self._held = dict[int, int]()  # bytes of tensors by their addresses

        def brought(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            here = {name: tensor.to(device) for name, tensor in tensors.items()}
            held.update({tensor.data_ptr(): tensor.nbytes for tensor in (*tensors.values(), *here.values())})
            return here

        index = brought(reader.index())
        self.representatives = index["representatives"]
        self.head_keys = index.get("head_keys")
        self.pool = BlockPool(
            functools.partial(reader.read_blocks, pinned=device.type == "cuda"),
            reader.manifest.geometry.layers,
            reader.manifest.block_count,
            device,
        )

        @functools.cache
        def methods() -> Mapping[str, Tensor]:
            return brought(reader.methods())

        @functools.cache
        def words() -> Callable[[str], Tensor]:
            return lexical_index(reader)

        @functools.cache
        def sentences() -> Callable[[int], range]:
            return sentence_tokens(reader)

        self.methods = methods
        self.lexical: Callable[[str], Tensor] = lambda question: words()(question)
        self.sentences: Callable[[int], range] = lambda block: sentences()(block)

    @property
    def bytes_held(self) -> int:
        """Memory that its tensors and its blocks take, in bytes; text and words are little beside them."""
        return sum(self._held.values()) + self.pool.bytes_held

    def close(self) -> None:
        """Close its files, which are opened again if they are needed. What was read stays in memory."""
        self.pool.end_reading_ahead()
        self.reader.close()

    def blocks(self, layer: int, ids: Tensor) -> Tensor:
        """See `BlockPool.blocks`."""
        return self.pool.blocks(layer, ids)

    def read_ahead(self, layer: int, ids: Tensor) -> None:
        """See `BlockPool.read_ahead`."""
        self.pool.read_ahead(layer, ids)

    def check(self, rows: int, query_heads: int) -> None:
        """Raises StoreDamaged if the retrieval heads, or the `rows` of their keys, do not fit the model."""
        manifest = self.reader.manifest
        expected = (rows, manifest.tokens, manifest.geometry.head_dim)
        found = None if self.head_keys is None else tuple(self.head_keys.shape)
        heads = manifest.retrieval_heads
        if heads and (found != expected or any(head.head >= query_heads for head in heads)):
            raise StoreDamaged(f"{self.reader.folder}: the keys of the retrieval heads do not fit them or the model")
