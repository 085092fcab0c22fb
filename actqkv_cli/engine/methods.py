"""What only some retrieval methods need of a document that was just read: see `store.tensors`."""

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d, pad

from actqkv_cli.engine.blocks import tokens_at
from actqkv_cli.engine.prefill import Prefilled
from actqkv_cli.retrieval.policies.heads import block_sums
from actqkv_cli.store.manifest import Geometry, ReadingSettings
from actqkv_cli.store.writer import DocumentWriter
from actqkv_kernels import anchor_representatives, key_bounds

_POOL = 7  # SnapKV's kernel


def method_tensors(
    prefilled: Prefilled, writer: DocumentWriter, geometry: Geometry, reading: ReadingSettings, tokens: int
) -> dict[str, Tensor]:
    """The tensors of methods.safetensors, on the CPU. Baselines read the segments once more, a layer at a time."""
    found = {"l1": prefilled.l1.cpu()}
    if not reading.baselines:
        return found
    size = geometry.block_size
    received = prefilled.received.cpu()
    by_block = pad(received, (0, -tokens % size), value=float("-inf")).unflatten(1, (-1, size))  # (L, N, b)
    counts = (tokens - torch.arange(by_block.shape[1]) * size).clamp(max=size)
    mass_of_best, places = by_block.sum(dim=0).max(dim=1)
    bounds, anchors, snapkv, l1 = [], [], [], []
    for layer in range(geometry.layers):
        blocks = torch.cat(list(writer.read_layer(layer)))
        keys = blocks[:, 0]
        bounds.append(key_bounds(keys, counts))
        mass = by_block[layer][:, None].expand(-1, geometry.kv_heads, -1)
        anchors.append(anchor_representatives(keys, mass))
        document_keys = keys.transpose(0, 1).flatten(1, 2)[:, :tokens]
        snapkv.append(snapkv_scores(prefilled.last_queries[layer].cpu(), document_keys, reading.sink, size))
        l1.append(tokens_at(blocks, places))
    return {
        **found,
        "bounds": torch.stack(bounds),
        "anchors": torch.stack(anchors),
        "h2o": block_sums(received, size),
        "snapkv": torch.stack(snapkv),
        "l1_attended": torch.stack(l1),
        "l1_attended_tokens": (torch.arange(len(places)) * size + places).int(),
        "l1_attended_mass": mass_of_best,
    }


def snapkv_scores(queries: Tensor, keys: Tensor, sink: int, block_size: int) -> Tensor:
    """Votes of an observation window for every block of one layer (SnapKV, section 4).

    queries: `(H, w, d)`, keys: `(Hkv, T, d)`, un-rotated. The attention of the queries to each token behind the sink,
    summed over them, mean over a kv head's queries, max-pooled over 7 tokens, mean over kv heads, summed over a block:
    `(N,)` fp32.
    """
    tokens = keys.shape[1]
    if tokens <= sink:
        return torch.zeros(-(-tokens // block_size))
    votes = []
    for head, key in enumerate(keys):
        group = len(queries) // len(keys)
        rows = queries[head * group : (head + 1) * group].float().flatten(0, 1)  # (G w, d)
        scores = rows @ key[sink:].float().mT * queries.shape[-1] ** -0.5
        votes.append(torch.softmax(scores, dim=-1).sum(dim=0) / group)
    pooled = max_pool1d(torch.stack(votes)[None], _POOL, stride=1, padding=_POOL // 2)[0].mean(dim=0)
    return block_sums(pad(pooled, (sink, 0)), block_size)
