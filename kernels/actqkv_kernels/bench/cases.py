"""What is checked, timed and compiled: calls of the public operations, at the shapes of Llama-3.1-8B."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from actqkv_kernels import (
    PageList,
    activation_probe,
    anchor_representatives,
    block_scores,
    block_votes,
    budget_shares,
    density,
    mean_representatives,
    paged_attention,
    top_blocks,
    write_pages,
)
from actqkv_kernels.bench import attention_rivals as rivals
from actqkv_kernels.bench.attention_rivals import Attended
from actqkv_kernels.bench.calls import Call, Draw, Make, Shapes, bytes_of
from actqkv_kernels.quantization import Bits, quantize_channels, quantize_rows

LLAMA_8B = Shapes()
ON_CPU = Shapes(window=128, divisor=10)
INTERPRETED = Shapes(
    heads=4, kv_heads=2, dim=32, block=16, sink=1, local=2, retrieved=3, window=40, layers=5, divisor=100
)

EXACT, FP32, BF16 = 0.0, 1e-5, 1e-2  # allowed errors: of ids and copies, of sums in fp32, of results rounded to bf16
DOCUMENTS = {"8K": 250, "100K": 3125, "1M": 31250}  # blocks
_FED = 8  # tokens that the decoding of an answer has come to
_UNLISTED = 3  # pages of a pool that no list names


@dataclass(frozen=True)
class Case:
    """A call of a public operation. rivals: other ways to do the same work; waits: the reference waits for the device,
    so that no CUDA graph can record it."""

    name: str
    operation: Callable[..., Any]
    allowed: float
    make: Make
    rivals: Mapping[str, Make] = field(default_factory=dict)
    waits: bool = False


def _call(
    operation: Callable[..., Any], *args: Any, shape: str, nbytes: int, operations: int | None = None, **kwargs: Any
) -> Call:
    run, reference = (partial(operation, *args, **kwargs, backend=backend) for backend in ("triton", "torch"))
    return Call(run, reference, shape, nbytes, operations)


def _probe(shapes: Shapes, draw: Draw) -> Call:
    queries = draw.normal(shapes.window, shapes.heads, shapes.dim) + draw.normal(1, shapes.heads, shapes.dim)
    queries = queries.transpose(0, 1)
    nbytes = bytes_of(queries) + 4 * shapes.heads * shapes.dim
    return _call(activation_probe, queries, shape=f"{shapes.window} queries", nbytes=nbytes)


def _means(shapes: Shapes, draw: Draw) -> Call:
    keys = draw.normal(shapes.window // shapes.block, shapes.kv_heads, shapes.block, shapes.dim)
    tokens = torch.full(keys.shape[:1], shapes.block, device=draw.device)
    tokens[-1] -= 5
    nbytes = bytes_of(keys) * (shapes.block + 1) // shapes.block
    return _call(mean_representatives, keys, tokens, shape=f"{len(keys)} blocks", nbytes=nbytes)


def _anchors(shapes: Shapes, draw: Draw) -> Call:
    keys = draw.normal(shapes.window // shapes.block, shapes.kv_heads, shapes.block, shapes.dim)
    mass = draw.normal(*keys.shape[:3], dtype=torch.float32)
    nbytes = bytes_of(mass) + bytes_of(keys) * (4 + 1) // shapes.block  # four anchors, one mean
    return _call(anchor_representatives, keys, mass, shape=f"{len(keys)} blocks", nbytes=nbytes)


def _pages(window: bool, shapes: Shapes, draw: Draw) -> Call:
    tokens = shapes.window if window else 1
    heads, size, dim = shapes.kv_heads, shapes.block, shapes.dim
    fused = draw.normal(tokens, 2 * heads, dim).transpose(0, 1)
    count = -(-tokens // size)
    pages = torch.full((count + _UNLISTED, 2, heads, size, dim), torch.nan, dtype=fused.dtype, device=draw.device)
    representatives = torch.zeros((len(pages), heads, dim), dtype=fused.dtype, device=draw.device)
    slots = draw.permutation(len(pages))[:count]
    offset = 0 if window else torch.tensor(size // 2, dtype=torch.int32, device=draw.device)

    def write(backend: Any) -> tuple[Tensor, Tensor]:
        means = representatives if window else None
        write_pages(fused[:heads], fused[heads:], pages, slots, offset, means, backend)
        return pages.view(torch.int16), representatives  # copies agree to the bit

    nbytes = 2 * bytes_of(fused) + (count * heads * dim * 2 if window else 0)
    shape = f"{tokens} tokens" + (", and means" if window else "")
    return Call(partial(write, "triton"), partial(write, "torch"), shape, nbytes)


def _block_scores(document: str, kind: Literal["dot", "cosine"], bits: Bits | None, shapes: Shapes, draw: Draw) -> Call:
    blocks = shapes.blocks(DOCUMENTS[document])
    numbers = draw.normal(blocks, 1, shapes.kv_heads, shapes.dim)
    keys = quantize_rows(numbers, bits) if bits else numbers
    probe = draw.normal(shapes.heads, shapes.dim, dtype=torch.float32)
    return _call(
        block_scores,
        probe,
        keys,
        kind,
        shape=f"{blocks} blocks",
        nbytes=bytes_of(keys, probe) + 4 * blocks,
        operations=2 * blocks * shapes.kv_heads * shapes.dim,
    )


def _block_votes(window: bool, document: str, shapes: Shapes, draw: Draw) -> Call:
    blocks, tokens = shapes.blocks(DOCUMENTS[document]), shapes.window if window else 1
    keys = draw.normal(blocks, shapes.kv_heads, shapes.dim)
    queries = draw.normal(tokens, shapes.heads, shapes.dim).transpose(0, 1)
    weights = torch.full((tokens,), 1 / tokens, device=draw.device)
    return _call(
        block_votes,
        queries,
        keys,
        weights,
        shape=f"{tokens} x {shapes.heads} queries, {blocks} blocks",
        nbytes=bytes_of(queries, keys, weights) + 4 * blocks,
        operations=2 * tokens * shapes.heads * blocks * shapes.dim,
    )


def _density(document: str, shapes: Shapes, draw: Draw) -> Call:
    scores = draw.normal(shapes.blocks(DOCUMENTS[document]), dtype=torch.float32)
    return _call(density, scores, shape=f"{len(scores)} blocks", nbytes=bytes_of(scores) + 4)


def _top_blocks(document: str, shapes: Shapes, draw: Draw) -> Call:
    scores = draw.normal(shapes.blocks(DOCUMENTS[document]), dtype=torch.float32)
    max_blocks = 2 * shapes.retrieved
    count = torch.tensor(shapes.retrieved, dtype=torch.int32, device=draw.device)
    shape = f"{min(shapes.retrieved, len(scores))} of {len(scores)} blocks"
    nbytes = bytes_of(scores) + 4 * max_blocks + 8
    return _call(top_blocks, scores, count, shapes.sink, max_blocks, shape=shape, nbytes=nbytes)


def _shares(shapes: Shapes, draw: Draw) -> Call:
    densities = draw.normal(shapes.layers, dtype=torch.float32).sigmoid()
    max_blocks, nbytes = shapes.blocks(DOCUMENTS["100K"]), (4 + 8) * shapes.layers
    return _call(budget_shares, densities, shapes.retrieved, max_blocks, shape=f"{shapes.layers} layers", nbytes=nbytes)


def make_attended(window: int, shapes: Shapes, draw: Draw) -> Attended:
    """The last `window` tokens that were fed, and the pages that they attend to; positions are clamped."""
    size, local = shapes.block, shapes.local * shapes.block
    near_keys = local + max(window, _FED)
    far, near = shapes.sink + shapes.retrieved, -(-near_keys // size)
    order = draw.permutation(far + near + _UNLISTED)
    pages = draw.normal(len(order), 2, shapes.kv_heads, size, shapes.dim)
    positions = torch.arange(near * size, dtype=torch.int32, device=draw.device)
    queries = positions[near_keys - window : near_keys]

    def listed(slots: Tensor, positions: Tensor, as_stored: bool) -> PageList:
        count = torch.tensor(len(slots), dtype=torch.int32, device=draw.device)
        return PageList(slots.contiguous(), positions.view(-1, size), count, as_stored)

    half = shapes.dim // 2
    angles = torch.outer(positions.float(), 500_000.0 ** (-torch.arange(half, device=draw.device) / half))
    return Attended(
        query=draw.normal(window, shapes.heads, shapes.dim).transpose(0, 1),
        pages=pages,
        far=listed(order[:far], torch.zeros(far * size, dtype=torch.int32, device=draw.device), True),
        near=listed(order[far : far + near], positions, False),
        query_positions=torch.stack([torch.full_like(queries, local), queries]),
        rotation=(angles.cos(), angles.sin()),
        keys=far * size + near_keys,
    )


def _attention(window: bool, bits: Bits | None, mass: bool, shapes: Shapes, draw: Draw) -> Call:
    given = make_attended(shapes.window if window else 1, shapes, draw)
    query, pages = given.query, given.pages
    nbytes = given.nbytes
    pool: dict[str, Any] = {"keys": pages[:, 0], "values": pages[:, 1]}
    if bits:
        pool = {"keys": quantize_channels(pool["keys"], bits), "values": quantize_rows(pool["values"], bits)}
        codes = 2 * given.keys * shapes.kv_heads * shapes.dim * bits // 8
        listed = len(given.far.slots) + len(given.near.slots)
        scales = listed * bytes_of(pool["keys"].scales[0]) + given.keys * bytes_of(pool["values"].scales[0, :, 0])
        nbytes = 2 * bytes_of(query) + codes + scales
    else:  # what must not be read: keys behind the last query, and pages that no list names
        pages[given.near.slots[-1:].long(), :, :, (given.keys - 1) % shapes.block + 1 :] = torch.nan
        used = torch.zeros(len(pages), dtype=torch.bool, device=draw.device)
        used[torch.cat([given.far.slots, given.near.slots]).long()] = True
        pages.masked_fill_(~used[:, None, None, None, None], torch.nan)
    return _call(
        paged_attention,
        **given.arguments() | pool,
        return_mass=mass,
        shape=f"{query.shape[1]} x {shapes.heads} queries, {given.keys} keys",
        nbytes=nbytes + (4 * shapes.kv_heads * given.keys if mass else 0),
        operations=4 * shapes.heads * shapes.dim * given.pairs,
    )


def _grouped(shapes: Shapes, draw: Draw) -> Call:
    return _attention(False, None, False, replace(shapes, heads=8 * shapes.kv_heads), draw)


def _rival(window: bool, way: Callable[[Attended], Call]) -> Make:
    return lambda shapes, draw: way(make_attended(shapes.window if window else 1, shapes, draw))


def _sdpa(window: bool) -> dict[str, Make]:
    return {
        "SDPA, gathered before": _rival(window, partial(rivals.sdpa, gathering=False)),
        "SDPA and gathering": _rival(window, partial(rivals.sdpa, gathering=True)),
    }


_FLEX = {"FlexAttention, gathered before": _rival(True, rivals.flex_attention)} if torch.cuda.is_available() else {}
_SCORED: dict[str, tuple[Literal["dot", "cosine"], Bits | None]] = {
    "dot": ("dot", None),
    "cosine": ("cosine", None),
    "int8": ("dot", 8),
    "int4": ("dot", 4),
}

CASES = [
    Case("activation_probe", activation_probe, FP32, _probe),
    Case("mean_representatives", mean_representatives, BF16, _means),
    Case("anchor_representatives", anchor_representatives, BF16, _anchors),
    Case("write_pages.window", write_pages, BF16, partial(_pages, True)),
    Case("write_pages.token", write_pages, BF16, partial(_pages, False)),
    *(
        Case(f"block_scores.{name}.{document}", block_scores, FP32, partial(_block_scores, document, kind, bits))
        for name, (kind, bits) in _SCORED.items()
        for document in DOCUMENTS
        if name == "dot" or document != "8K"
    ),
    *(
        Case(f"block_votes.{name}.{document}", block_votes, FP32, partial(_block_votes, name == "window", document))
        for name in ("window", "token")
        for document in DOCUMENTS
    ),
    *(Case(f"density.{document}", density, FP32, partial(_density, document)) for document in DOCUMENTS),
    *(Case(f"top_blocks.{document}", top_blocks, EXACT, partial(_top_blocks, document)) for document in DOCUMENTS),
    Case("budget_shares", budget_shares, EXACT, _shares, waits=True),
    Case("paged_attention.decode", paged_attention, BF16, partial(_attention, False, None, False), _sdpa(False)),
    Case("paged_attention.decode_int8", paged_attention, BF16, partial(_attention, False, 8, False)),
    Case("paged_attention.decode_int4", paged_attention, BF16, partial(_attention, False, 4, False)),
    Case("paged_attention.decode_group8", paged_attention, BF16, _grouped),
    Case("paged_attention.decode_mass", paged_attention, BF16, partial(_attention, False, None, True)),
    Case("paged_attention.window", paged_attention, BF16, partial(_attention, True, None, False), _sdpa(True) | _FLEX),
    Case("paged_attention.window_mass", paged_attention, BF16, partial(_attention, True, None, True)),
]
