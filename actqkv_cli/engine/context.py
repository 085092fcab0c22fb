"""What a question is put to: documents, and the turns of a conversation behind them, as one row of blocks.

Keys are stored un-rotated, so blocks of different documents can stand side by side. Every part begins with a block of
its own; what is missing in the last block of the part before it is a gap, which no one attends to.
"""

import functools
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from actqkv_cli.engine.blocks import BlockPool
from actqkv_cli.engine.document import OpenDocument
from actqkv_cli.errors import StoreDamaged, UsageError
from actqkv_cli.model.causal_lm import CausalLM
from actqkv_cli.retrieval.policies import of_several_documents
from actqkv_cli.retrieval.policy import Resident, head_rows
from actqkv_cli.retrieval.sources import MAX_PASSAGES, Passage, passages
from actqkv_cli.store.manifest import METHODS, Manifest, decisive
from actqkv_cli.store.tensors import names_in


class Part(Protocol):
    """Tokens in blocks. tokens: how many."""

    tokens: int
    lexical: Callable[[str], Tensor]  # a question's text -> (N,)
    sentences: Callable[[int], range]  # a block -> its tokens and those of its sentences

    def load(self, names: Collection[str]) -> Mapping[str, Tensor]: ...  # as `Resident.load`

    def blocks(self, layer: int, ids: Tensor) -> Tensor: ...

    def prefetch(self, layer: int, ids: Tensor) -> None: ...


@dataclass(frozen=True)
class Source:
    """A passage that an answer rests on, and the document that it stands in."""

    document: OpenDocument
    passage: Passage


@dataclass(frozen=True)
class Context:
    """parts: in order; first_blocks: the block that each begins with; tokens: where the last part ends, gaps counted.

    turn_blocks: how many blocks at the end of the row hold the turns of a conversation; gaps: tokens `(m,)` of the row
    that are no one's; unranked: those that may not be ranked, the gaps and every document's sink; int64 on the CPU.
    """

    documents: tuple[OpenDocument, ...]
    parts: tuple[Part, ...]
    first_blocks: tuple[int, ...]
    tokens: int
    turn_blocks: int
    resident: Resident
    gaps: Tensor
    unranked: Tensor

    @functools.cached_property
    def pool(self) -> BlockPool:
        """The pages of the row's blocks: the document's own, or one that all parts share."""
        if len(self.parts) == 1:
            return self.documents[0].pool
        # That it knows no context lets go of both at once.
        read = functools.partial(_blocks, self.parts, self.first_blocks)
        return BlockPool(read, self.resident.layers, self.resident.num_blocks, self.resident.device)

    @property
    def bytes_held(self) -> int:
        """Memory that the row takes beside that of its parts, in bytes."""
        if len(self.parts) == 1:
            return 0
        return sum(tensor.nbytes for tensor in self.resident.load(()).values()) + self.pool.bytes_held

    def blocks(self, layer: int, ids: Tensor) -> Tensor:
        """Blocks `ids` (ascending, int64, on the CPU) of one layer: `(n, 2, Hkv, b, d)`, keys then values."""
        return _blocks(self.parts, self.first_blocks, layer, ids)

    def prefetch(self, layer: int, ids: Tensor) -> None:
        """Begin to read what a layer will soon be asked for. ids: as for `blocks`."""
        for part, ours in _by_part(self.parts, self.first_blocks, ids):
            part.prefetch(layer, ours)

    def sources(self, ranking: Tensor, attended: set[int]) -> list[Source]:
        """The best passages of all documents, best first. ranking: `(N,)` over the row; attended: its blocks.

        What was said in a conversation is no source.
        """
        ends = [*self.first_blocks[1:], len(ranking)]
        ranges = list(zip(self.documents, self.first_blocks, ends, strict=False))
        best_score = max(float(ranking[first:end].max()) if first < end else 0.0 for _, first, end in ranges)
        found = []
        for document, first, end in ranges:
            ours = {block - first for block in attended if first <= block < end}
            found += [Source(document, p) for p in passages(document.reader, ranking[first:end], ours, best_score)]
        return sorted(found, key=lambda source: -source.passage.score)[:MAX_PASSAGES]


def _blocks(parts: Sequence[Part], first_blocks: Sequence[int], layer: int, ids: Tensor) -> Tensor:
    found = [part.blocks(layer, ours) for part, ours in _by_part(parts, first_blocks, ids)]
    return found[0] if len(found) == 1 else torch.cat(found)


def _by_part(parts: Sequence[Part], first_blocks: Sequence[int], ids: Tensor) -> list[tuple[Part, Tensor]]:
    """Which blocks of which parts: at least one part, of which there may be none."""
    if len(parts) == 1:
        return [(parts[0], ids)]
    borders = torch.searchsorted(ids, torch.tensor([*first_blocks, 1 << 40])).tolist()
    ranges = zip(parts, first_blocks, borders[:-1], borders[1:], strict=True)
    found = [(part, ids[begin:end] - first) for part, first, begin, end in ranges if begin < end]
    return found or [(parts[0], ids)]


def context_of(documents: Sequence[OpenDocument], model: CausalLM, turns: Part | None = None) -> Context:
    """Documents side by side, and behind them turns.

    Raises UsageError for documents that were read in different ways, StoreDamaged for one that does not fit its model.
    """
    query_heads = model.config.num_attention_heads
    manifests = [document.reader.manifest for document in documents]
    manifest = manifests[0]
    for other in manifests[1:]:
        for field, ours, theirs in _must_agree(manifest, other):
            if ours != theirs:
                names = f"{manifest.source.name} and {other.source.name}"
                raise UsageError(
                    f"{names} were read in different ways ({field}), and cannot be asked together",
                    "ingest both again with the same settings",
                )
    size, sink = manifest.geometry.block_size, manifest.reading.sink
    if any(head.head >= query_heads for head in manifest.retrieval_heads):
        raise StoreDamaged(f"{documents[0].reader.folder}: the retrieval heads do not fit the model")
    parts: tuple[Part, ...] = (*documents, *([turns] if turns else []))
    first_blocks, gaps, unranked, position = [], [], [], 0
    for number, part in enumerate(parts):
        first_blocks.append(position // size)
        if number < len(documents):
            unranked.append(torch.arange(position, position + min(sink, part.tokens - 1)))
        end = position + part.tokens
        position = -(-end // size) * size
        if number < len(parts) - 1:
            gaps.append(torch.arange(end, position))
    none = torch.empty(0, dtype=torch.int64)
    hidden = torch.cat([*gaps, none])
    return Context(
        documents=tuple(documents),
        parts=parts,
        first_blocks=tuple(first_blocks),
        tokens=end,
        turn_blocks=position // size - first_blocks[-1] if turns else 0,
        resident=_resident(documents, parts, first_blocks, end, model),
        gaps=hidden,
        unranked=torch.cat([*unranked, hidden]).unique(),
    )


def _must_agree(one: Manifest, other: Manifest) -> list[tuple[str, object, object]]:
    fields: list[tuple[str, object, object]] = [
        (name, getattr(one.reading, name), getattr(other.reading, name))
        for name in ("sink", "local", "positions", "representative", "score")
    ]
    return [
        *fields,
        ("model", decisive(one.model), decisive(other.model)),
        ("geometry", one.geometry, other.geometry),
        ("retrieval heads", one.retrieval_heads, other.retrieval_heads),
    ]


def _resident(
    documents: Sequence[OpenDocument],
    parts: Sequence[Part],
    first_blocks: Sequence[int],
    tokens: int,
    model: CausalLM,
) -> Resident:
    manifest = documents[0].reader.manifest
    size, geometry, query_heads = manifest.geometry.block_size, manifest.geometry, model.config.num_attention_heads
    rows = len(head_rows(manifest.retrieval_heads, query_heads, geometry.kv_heads))
    ends = [*first_blocks[1:], -(-tokens // size)]
    held: dict[str, Tensor] = {}

    def load(names: Collection[str]) -> Mapping[str, Tensor]:
        missing = {*names} - held.keys()
        if len(parts) > 1 and not missing.isdisjoint(names_in(METHODS)):
            raise UsageError(
                "this policy works on one document at a time, and not in a conversation",
                f"choose one of {', '.join(of_several_documents())}",
            )
        found = [part.load(missing) for part in parts] if missing else []
        for document, one in zip(documents, found, strict=False):
            if "head_keys" in one and len(one["head_keys"]) != rows:
                folder = document.reader.folder
                raise StoreDamaged(f"{folder}: the keys of the retrieval heads do not fit them or the model")
        for name in missing.intersection(*found):
            held[name] = found[0][name] if len(parts) == 1 else in_a_row(name, [one[name] for one in found])
        return held

    def in_a_row(name: str, tensors: list[Tensor]) -> Tensor:
        if name == "head_keys":  # of single tokens: they reach to the next part's first block
            widths = [(end - first) * size for first, end in zip(first_blocks, ends, strict=True)]
            tensors = [pad(keys, (0, 0, 0, width - keys.shape[1])) for keys, width in zip(tensors, widths, strict=True)]
        return torch.cat(tensors, dim=1)

    def lexical(question: str) -> Tensor:
        if len(parts) == 1:
            return documents[0].lexical(question)
        return torch.cat([part.lexical(question) for part in parts])

    def sentences(block: int) -> range:
        place = bisect_right(first_blocks, block) - 1
        tokens, first = parts[place].sentences(block - first_blocks[place]), first_blocks[place] * size
        return range(tokens.start + first, tokens.stop + first)

    return Resident(
        layers=geometry.layers,
        num_blocks=ends[-1],
        kv_heads=geometry.kv_heads,
        query_heads=query_heads,
        device=model.device,
        load=load,
        heads=tuple(manifest.retrieval_heads),
        lexical=lexical,
        sentences=sentences,
    )
