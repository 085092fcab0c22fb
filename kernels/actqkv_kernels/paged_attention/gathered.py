"""Attention over pages in few passes over memory that is kept, for processors and wherever no kernel runs.

The keys of a list are gathered and rotated once and stay with it; where the list grows, what was written since is
added. Grouped queries fold into rows, so that keys are never repeated over heads, the scores of both sides land in one
buffer, and the softmax runs in place.

Scores are products in fp32 whatever the model's type is: rounded to bf16, which torch's products on processors are,
they cost a model whose scores are large some of its answers.
"""

import functools
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actqkv_kernels.paged_attention.workspace import Workspace

_SCORE_BYTES = 256 << 20  # scores held at a time; heads are taken in turn where a window needs more
_KEPT = "gathered"  # what a list's `kept` calls what is kept here
_Turn = tuple[Tensor, Tensor]  # cos and sin, `(T, d / 2)` each


@dataclass
class _Side:
    """The keys of a list that someone may see, in its order, side by side.

    pages: int64 `(p,)`, where in the pool; place: where in the list, int64 `(n,)`; position: of each; key, rotated,
    fp32, and value: `(Hkv, n, d)`, of which the first `filled` are there.
    """

    pages: Tensor
    place: Tensor
    position: Tensor
    key: Tensor
    value: Tensor
    filled: int = 0

    @functools.cached_property
    def positions(self) -> list[int]:
        """On the host."""
        return self.position.tolist()

    @functools.cached_property
    def greatest(self) -> int:
        return int(self.position.max()) if len(self.position) else -1


@dataclass(frozen=True)
class _Queries:
    """Where a window's queries stand, which is the same in all layers: for far keys and for near ones.

    far, near: int64 `(W,)`; first_far, first, last: of far's and of near's, on the host; turns: how they are rotated
    for either, if they are; together: whether both are the same; given: what all this was made of.
    """

    given: tuple[object, ...]
    far: Tensor
    near: Tensor
    first_far: int
    first: int
    last: int
    turns: tuple[_Turn, _Turn] | None
    together: bool


def paged_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    far: Any,
    near: Any,
    query_positions: Tensor,
    scaling: float,
    rotation: tuple[Tensor, Tensor] | None,
    sliding_window: int | None,
    return_mass: bool,
    workspace: Workspace,
) -> tuple[Tensor, Tensor | None]:
    queries = _queries(query_positions, rotation, workspace)
    far_side, near_side = _side(far, keys), _side(near, keys)
    _fill(far_side, keys, values, far_side.filled, len(far_side.place), None if far.as_stored else rotation)
    # Of the keys before the first query nothing changes while the list is used; what follows it may be new.
    known, end = (bisect_left(near_side.positions, position) for position in (queries.first, queries.last + 1))
    begin = min(near_side.filled, known)
    own = queries.turns and queries.turns[1] if begin == known and end - begin == query.shape[1] else None
    _fill(near_side, keys, values, begin, end, rotation, own)

    query = query.float() * scaling  # rather than the scores, which are far more
    near_query = far_query = query
    if queries.turns is not None:
        near_query = _turned(query, queries.turns[1])
        far_query = near_query if queries.together else _turned(query, queries.turns[0])
    out, received = _attend(
        far_query,
        near_query,
        (far_side.key, far_side.value),
        (near_side.key[:, :end], near_side.value[:, :end]),
        _seen(queries, far_side, near_side, known, end, sliding_window),
        return_mass,
        workspace,
    )
    if received is None:
        return out, None
    mass = received.new_zeros((len(received), far.positions.numel() + near.positions.numel()))
    mass[:, torch.cat([far_side.place, far.positions.numel() + near_side.place[:end]])] = received
    return out, mass.unflatten(1, (-1, far.positions.shape[1]))


def _queries(positions: Tensor, rotation: tuple[Tensor, Tensor] | None, workspace: Workspace) -> _Queries:
    """Kept from layer to layer, for as long as the very same positions are given."""
    kept, given = workspace.kept, (positions, *(rotation or ()))
    if isinstance(kept, _Queries) and [*map(id, kept.given)] == [*map(id, given)]:
        return kept
    far, near = positions.long()
    turns = None if rotation is None else (_turn(far, rotation), _turn(near, rotation))
    together = torch.equal(far, near)
    found = _Queries(given, far, near, int(far[0]), int(near[0]), int(near[-1]), turns, together)
    workspace.kept = found
    return found


def _side(given: Any, keys: Tensor) -> _Side:
    """What is kept of a list, made at its first use."""
    if _KEPT not in given.kept:
        count = int(given.count)
        positions = given.positions[:count].flatten()
        place = (positions >= 0).nonzero()[:, 0]
        value = keys.new_empty((keys.shape[1], len(place), keys.shape[3]))
        key = torch.empty_like(value, dtype=torch.float32)
        given.kept[_KEPT] = _Side(given.slots[:count].long(), place, positions[place].long(), key, value)
    side: _Side = given.kept[_KEPT]
    return side


def _fill(
    side: _Side,
    keys: Tensor,
    values: Tensor,
    begin: int,
    end: int,
    rotation: tuple[Tensor, Tensor] | None,
    turn: _Turn | None = None,
) -> None:
    """Gather and rotate those from `begin` to `end`. turn: how, if it is known."""
    side.filled = end
    if begin >= end:
        return
    place, size = side.place[begin:end], keys.shape[2]
    if end - begin == 1:
        page, row = divmod(int(place), size)
        slot = int(side.pages[page])
        key, value = keys[slot, :, row : row + 1], values[slot, :, row : row + 1]
    else:
        first, last = int(place[0]) // size, int(place[-1]) // size + 1
        pages = side.pages[first:last]
        key, value = (pool.index_select(0, pages).transpose(0, 1).flatten(1, 2) for pool in (keys, values))
        if len(place) < key.shape[1]:  # some of their keys are seen by no one
            inside = place - first * size
            key, value = key[:, inside], value[:, inside]
    key = key.float()
    if rotation is not None:
        key = _turned(key, turn or _turn(side.position[begin:end], rotation))
    if end - begin == len(side.place):
        side.key, side.value = key, value
    else:
        side.key[:, begin:end], side.value[:, begin:end] = key, value


def _seen(
    queries: _Queries, far: _Side, near: _Side, known: int, end: int, sliding_window: int | None
) -> Tensor | None:
    """Which of the last C keys a query sees, bool `(W, C)`; all see the others. None: all see all."""
    if sliding_window is None and far.greatest <= queries.first_far:
        return None if len(queries.near) == 1 else queries.near[:, None] >= near.position[known:end]
    distance = torch.cat([queries.far[:, None] - far.position, queries.near[:, None] - near.position[:end]], dim=1)
    seen = distance >= 0
    return seen if sliding_window is None else seen & (distance < sliding_window)


def _attend(
    far_query: Tensor,
    near_query: Tensor,
    far: tuple[Tensor, Tensor],
    near: tuple[Tensor, Tensor],
    seen: Tensor | None,
    return_mass: bool,
    workspace: Workspace,
) -> tuple[Tensor, Tensor | None]:
    """Queries `(H, W, d)` fp32, rotated and scaled, for they are far fewer than the scores; keys, fp32, and values
    `(Hkv, n, d)`. Returns outputs `(H, W, d)` of the values' type, and attention received `(Hkv, F + N)` fp32."""
    heads, window, dim = near_query.shape
    kv_heads, far_keys = far[0].shape[:2]
    group, total = heads // kv_heads, far_keys + near[0].shape[1]
    if not total:
        return torch.zeros_like(near_query, dtype=near[1].dtype), near_query.new_zeros(
            (kv_heads, 0)
        ) if return_mass else None
    fold = (kv_heads, group * window, dim)
    far_rows, near_rows = far_query.reshape(fold), near_query.reshape(fold)
    hidden = None
    if seen is not None:
        hidden = torch.zeros(seen.shape, dtype=near_query.dtype, device=seen.device)
        hidden.masked_fill_(~seen, float("-inf"))

    out = near[1].new_empty(fold)
    mass = near_query.new_empty((kv_heads, total)) if return_mass else None
    row_bytes = group * window * total * near_query.element_size()
    step = max(1, min(kv_heads, _SCORE_BYTES // max(row_bytes, 1)))
    # As in decoding: scores are copied together rather than values, and need no buffer.
    few = window < 16 and step == kv_heads
    for first in range(0, kv_heads, step):
        part = slice(first, min(first + step, kv_heads))
        if few:
            scores = torch.cat([far_rows @ far[0].mT, near_rows @ near[0].mT], dim=-1)
        else:
            scores = workspace.take((part.stop - first, group * window, total), near_query.dtype, near_query.device)
            if far_keys:
                torch.bmm(far_rows[part], far[0][part].mT, out=scores[..., :far_keys])
            torch.bmm(near_rows[part], near[0][part].mT, out=scores[..., far_keys:])
        if hidden is not None:
            scores.view(-1, group, window, total)[..., total - hidden.shape[1] :] += hidden
        in_place = scores if scores.device.type == "cpu" else None  # other devices do not promise that it works
        p = torch.softmax(scores, dim=-1, out=in_place)
        if mass is not None:
            ones = p.new_ones((len(p), 1, p.shape[1]))  # a product sums columns several times faster than sum()
            mass[part] = torch.bmm(ones, p).squeeze(1)
        p = p.to(out.dtype)
        if few:
            torch.baddbmm(p[..., :far_keys] @ far[1], p[..., far_keys:], near[1], out=out)
        else:
            torch.bmm(p, torch.cat([far[1][part], near[1][part]], dim=1), out=out[part])
    return out.view(heads, window, dim), mass


def _turn(positions: Tensor, rotation: tuple[Tensor, Tensor]) -> _Turn:
    cos, sin = (table.index_select(0, positions) for table in rotation)
    return cos, sin


def _turned(x: Tensor, turn: _Turn) -> Tensor:
    cos, sin = turn
    out = torch.empty_like(x)
    (first, second), (out_first, out_second) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin)
    return out
