"""A tiny document to store: 10 blocks of 4 tokens in segments of 4, the last block partly filled."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from actqkv_cli.errors import ActqkvError
from actqkv_cli.store.manifest import Draft, Geometry, Manifest, ReadingSettings, RetrievalHead, SourceFile
from actqkv_cli.store.reader import DocumentReader
from actqkv_cli.store.tensors import STORED
from actqkv_cli.store.writer import DocumentWriter

TEXT = "Der Leuchtturm wurde 1903 gebaut — für Schiffe.\r\nEnde.\n"
TOKENS = 38


@dataclass
class Sample:
    draft: Draft
    blocks: Tensor  # (L, N, 2, Hkv, b, d)
    representatives: Tensor  # (L, N, 1, Hkv, d)
    text: str
    tokens: dict[str, Tensor]
    index: dict[str, Tensor]
    methods: dict[str, Tensor]  # empty: as documents of before there was such a file

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {**self.tokens, **self.index, **self.methods}

    def folder(self, home: Path) -> Path:
        return home / self.draft.id

    def finish(self, home: Path, disk_limit: int | None = None) -> Manifest:
        """Ingests the document, from wherever an earlier attempt stopped."""
        with DocumentWriter.open(self.folder(home), self.draft, disk_limit) as writer:
            for number in range(len(writer.segments), self.draft.segment_count):
                part = slice(number * 4, number * 4 + self.draft.blocks_of(number))
                writer.write_segment(self.blocks[:, part], self.representatives[:, part])
            return writer.commit(self.text, self.tensors)

    def everything_equal(self, folder: Path) -> bool:
        """Reads all that a reader can read; whether it is what was written."""
        with DocumentReader(folder) as reader:
            draft = {name: getattr(reader.manifest, name) for name in Draft.model_fields}
            return (
                Draft.model_validate(draft) == self.draft
                and reader.text() == self.text
                and same(reader.tokens(), self.tokens)
                and same(reader.tensors(STORED), self.tensors)
                and all(
                    torch.equal(reader.read_blocks(layer, range(self.draft.block_count)), self.blocks[layer])
                    for layer in range(self.draft.geometry.layers)
                )
            )


def numbers(seed: int, *shape: int) -> Tensor:
    """Exact in float32 and the same with every version of torch."""
    flat = (torch.arange(math.prod(shape)) * 7919 + seed * 104_729) % 4001 - 2000
    return (flat / 64).float().view(shape)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def make(
    dtype: Literal["float32", "bfloat16", "float16"] = "float32", seed: int = 0, document: str = "leuchtturm-0badc0de"
) -> Sample:
    geometry = Geometry(layers=3, kv_heads=2, head_dim=4, block_size=4, segment_tokens=16, dtype=dtype)
    draft = Draft(
        id=document,
        source=SourceFile(
            name="Leuchtturm — neu.pdf",
            sha256="5" * 64,
            page_count=2,
            characters=len(TEXT),
            extractor="pypdf 6",
            skipped=[2],
        ),
        model={"name": "tiny", "weights": "a" * 64},
        geometry=geometry,
        reading=ReadingSettings(
            window=8,
            sink=4,
            local=8,
            budget=16,
            positions="clamped",
            prefill="windowed",
            representative="mean",
            score="dot",
        ),
        tokens=TOKENS,
        document_start=3,
        retrieval_heads=[RetrievalHead(layer=1, head=3, score=0.1), RetrievalHead(layer=2, head=0, score=1)],
        density=[0.25, 1 / 3, 0.9],
    )
    count = draft.block_count
    blocks = numbers(seed, 3, count, 2, 2, 4, 4).to(getattr(torch, dtype))
    blocks[:, -1, :, :, 2:] = 0
    representatives = numbers(seed + 1, 3, count, 1, 2, 4).to(blocks.dtype)
    positions = torch.arange(TOKENS, dtype=torch.int32)
    tokens = {"ids": positions * 7, "char_start": (positions - 3).clamp_min(-1), "page": positions // 20 + 1}
    index = {
        "representatives": representatives,
        "head_keys": torch.stack([blocks[1, :, 0, 1], blocks[2, :, 0, 0]]).flatten(1, 2)[:, :TOKENS].contiguous(),
    }
    methods = {"l1": blocks[:, :, :, :, 3].contiguous(), "h2o": numbers(seed + 2, 3, count)}
    return Sample(draft, blocks, representatives, TEXT, tokens, index, methods)


def outcome(call: Callable[[], object]) -> ActqkvError | None:
    """The foreseen failure of `call`, of one line; None if it succeeds."""
    try:
        call()
    except ActqkvError as error:
        if "\n" in error.message + error.hint:
            raise AssertionError("an error message of more than one line") from error
        return error
    return None


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
