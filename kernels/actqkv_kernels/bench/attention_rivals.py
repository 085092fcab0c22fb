"""Attention as torch has it, on keys that were rotated and gathered into one tensor.

One rotation of a query serves all keys here, so they compute what `paged_attention` does where far and near queries
stand at the same position; that is as much work, and it is what they are checked against.
"""

import functools
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from actqkv_kernels import PageList, paged_attention
from actqkv_kernels.bench.calls import Call, bytes_of
from actqkv_kernels.paged_attention.reference import rotated


@dataclass(frozen=True)
class Attended:
    """Arguments of `paged_attention`; pages: `(P, 2, Hkv, b, d)`; keys: how many the last query sees, of which the
    last ones are the queries' own."""

    query: Tensor
    pages: Tensor
    far: PageList
    near: PageList
    query_positions: Tensor
    rotation: tuple[Tensor, Tensor]
    keys: int

    @property
    def pairs(self) -> int:
        """Of a query and a key that it sees."""
        window = self.query.shape[1]
        return window * (self.keys - window) + window * (window + 1) // 2

    @property
    def nbytes(self) -> int:
        """Bytes of queries, outputs, and the keys and values that are seen."""
        return 2 * bytes_of(self.query) + 2 * self.keys * bytes_of(self.pages[0, 0, :, 0])

    def arguments(self) -> dict[str, Any]:
        """Those of `paged_attention`, by name."""
        return {
            "query": self.query,
            "keys": self.pages[:, 0],
            "values": self.pages[:, 1],
            "far": self.far,
            "near": self.near,
            "query_positions": self.query_positions,
            "scaling": self.query.shape[-1] ** -0.5,
            "rotation": self.rotation,
        }

    def gather(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries `(1, H, W, d)` and keys, and values `(1, Hkv, keys, d)`."""
        slots = torch.cat([self.far.slots, self.near.slots])
        positions = torch.cat([self.far.positions, self.near.positions]).flatten()[: self.keys]
        key, value = self.pages[slots].permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, : self.keys]
        query = rotated(self.query, self.query_positions[1], self.rotation).to(key.dtype)
        return query[None], rotated(key, positions, self.rotation).to(key.dtype)[None], value[None]


def sdpa(given: Attended, gathering: bool) -> Call:
    """torch's `scaled_dot_product_attention`. gathering: gather and rotate within the call."""
    window = given.query.shape[1]
    mask: Any = causal_lower_right(window, given.keys) if window > 1 else None
    ready = None if gathering else given.gather()

    def run() -> Tensor:
        query, key, value = ready or given.gather()
        return scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)[0]

    return _call(given, run)


def flex_attention(given: Attended) -> Call:
    """torch's FlexAttention, compiled, on keys that were gathered before."""
    attend, mask = _compile_flex(given.query.shape[1], given.keys, given.query.device)
    ready = given.gather()
    return _call(given, lambda: attend(*ready, block_mask=mask, enable_gqa=True)[0])


@functools.cache
def _compile_flex(window: int, keys: int, device: torch.device) -> tuple[Any, Any]:
    from torch.nn.attention import flex_attention as flex

    mask = flex.create_block_mask(
        lambda _batch, _head, query, key: key <= query + (keys - window), None, None, window, keys, device=str(device)
    )
    return torch.compile(flex.flex_attention), mask


def _call(given: Attended, run: Any) -> Call:
    where = given.query_positions[1:].expand(2, -1).contiguous()
    reference = partial(paged_attention, **given.arguments() | {"query_positions": where}, backend="torch")
    return Call(run, reference, "", given.nbytes)
