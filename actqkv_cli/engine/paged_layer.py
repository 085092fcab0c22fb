"""The same as `layer`, for the kernels: blocks stay in the pages of a pool, and attention reads them there."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from actqkv_cli.engine.blocks import BlockPool, Hold
from actqkv_cli.engine.layer import Positions, Select
from actqkv_cli.engine.layout import Layout
from actqkv_cli.model.attention import Call, Rotary
from actqkv_cli.retrieval.policy import Selection
from actqkv_kernels import PageList, paged_attention, write_pages


@dataclass(frozen=True)
class Moment:
    """Where a decoding step stands, on the device, so that a recorded step can be played again.

    offset: int32 `()`, tokens fed before; query_positions: int32 `(2, 1)`, of the token that is fed.
    """

    offset: Tensor
    query_positions: Tensor


@dataclass(frozen=True)
class _Pages:
    """Pages of one side. places: int64 `(n, b)` on the CPU, which token each key is, -1: no one's; holds: keep them."""

    pages: Tensor
    places: Tensor
    holds: tuple[Hold, ...]


class PagedLayer:
    """See `LayerAttention`, whose methods and attributes these are.

    moment: set while decoding steps are recorded and played; what is fed then stands where it says.
    """

    def __init__(
        self,
        layer: int,
        pool: BlockPool,
        select: Select,
        rotary: Rotary,
        layout: Layout,
        positions: Positions,
        gaps: Tensor | None = None,
    ) -> None:
        self._layer = layer
        self._pool = pool
        self._select = select
        self._rotary = rotary
        self._layout = layout
        self._positions = positions
        self._gaps = gaps
        self._position = -1
        self.document_near = self.far_tokens = 0
        self.want_mass = False
        self.moment: Moment | None = None
        self._mass = torch.empty(0)  # (Hkv, F + N, b), of the last call

    def begin(self, position: int, room: int) -> None:
        self._fed_count = 0
        if position != self._position:
            self._position = position
            layout = self._layout
            first = layout.near_start(position)
            self.near_first = first * layout.block_size
            self._local = self._of_blocks(torch.arange(first, -(-position // layout.block_size)))
            self.document_near = int((self._local.places >= 0).sum())
            self._fed = self._lease(0)
            self._sink = torch.arange(layout.sink_blocks(position))
            self._chosen: Selection | None = None
            self._far: list[_Pages] = []
            self.far_tokens = 0
        self._make_room(room)

    @property
    def chosen_blocks(self) -> Tensor:
        return self._sink[:0] if self._chosen is None else self._chosen.blocks

    @property
    def fed(self) -> Tensor:
        pages = self._pool.pages(self._layer)
        states = pages[self._fed.pages.to(pages.device)]  # (n, 2, Hkv, b, d)
        return states.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, : self._fed_count]

    def document_mass(self, tokens: int) -> Tensor:
        received = self._mass.sum(dim=0).flatten()
        places = torch.cat([part.places for part in (*self._far, self._local, self._fed)]).flatten()
        ours = (places >= 0) & (places < tokens)
        out = received.new_zeros(tokens)
        out[places[ours].to(out.device)] = received[ours.to(out.device)]
        return out

    @property
    def near_mass(self) -> Tensor:
        near = self._mass[:, sum(len(part.pages) for part in self._far) :].flatten(1)
        return near[:, : self.document_near + self._fed_count]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
        start, window = self._fed_count, key.shape[1]
        if self.moment is None:
            self._make_room(start + window)
            self._fed_count += window
            self._bring(self._select(self._layer, query))
        base = self._near_base()
        far, near = self._far_list, self._list_near(base)
        pages = self._pool.pages(self._layer)
        if self.moment is None:
            first = base + self.document_near + start
            where = _query_positions(first, window, self._far_query_position, query.device)
            offset: int | Tensor = start
        else:
            where, offset = self.moment.query_positions, self.moment.offset
        write_pages(key, value, pages, near.slots[len(self._local.pages) :], offset)
        stop = max(base + near.positions.numel(), self._layout.local + 1)
        result = paged_attention(
            query,
            pages[:, 0],
            pages[:, 1],
            far,
            near,
            where,
            scaling=call.scaling,
            rotation=self._rotary.halves(stop) if call.rotates else None,
            sliding_window=call.sliding_window,
            want_mass=self.want_mass,
        )
        if result.mass is not None:
            self._mass = result.mass
        return result.out

    def next_moment(self) -> Tensor:
        """Query positions `(2, 1)` of the next token that is fed."""
        first = self._near_base() + self.document_near + self._fed_count
        return _query_positions(first, 1, self._far_query_position, self._pool.device)

    def played(self, tokens: int) -> None:
        """So many tokens were fed by playing a recorded step."""
        self._fed_count += tokens

    @property
    def _far_query_position(self) -> int | None:
        """Where queries stand for the far keys, if that is one place."""
        return self._layout.local if self._positions == "clamped" else None

    def _near_base(self) -> int:
        """The position that the first key of the local window takes."""
        if self._positions == "original":
            return self.near_first
        return self.far_tokens if self._positions == "compact" else 0

    def _make_room(self, tokens: int) -> None:
        """Pages for so many fed tokens."""
        size, have = self._layout.block_size, len(self._fed.pages)
        if tokens > have * size:
            more = self._lease(max(-(-tokens // size) - have, have))
            pages = torch.cat([self._fed.pages, more.pages])
            places = self._position + torch.arange(len(pages) * size).view(-1, size)
            self._fed = _Pages(pages, places, (*self._fed.holds, *more.holds))
            self._near_key: int | None = None

    def _lease(self, count: int) -> _Pages:
        pages, hold = self._pool.lease(self._layer, count)
        return _Pages(pages, torch.full((count, self._layout.block_size), -1), (hold,))

    def _of_blocks(self, ids: Tensor) -> _Pages:
        """The pages of blocks, and which tokens they hold: no gaps, and none behind the document's end."""
        size = self._layout.block_size
        pages = self._pool.bring(self._layer, ids)
        places = ids[:, None] * size + torch.arange(size)
        hidden = places >= self._position
        if self._gaps is not None:
            hidden |= torch.isin(places, self._gaps)
        return _Pages(pages, places.masked_fill(hidden, -1), (self._pool.hold(self._layer, pages),))

    def _bring(self, selected: Tensor | Selection) -> None:
        """List the far pages: sink, blocks, and pages of single tokens; unless they are those of the call before."""
        if isinstance(selected, Tensor):
            selected = Selection(selected, self._sink[:0], torch.empty(0))
        before = self._chosen
        if (
            before is not None
            and torch.equal(selected.blocks, before.blocks)
            and torch.equal(selected.tokens, before.tokens)
        ):
            return
        self._chosen = selected
        self._far = [self._of_blocks(torch.cat([self._sink, selected.blocks]))]
        if len(selected.tokens):
            self._far.append(self._of_tokens(selected))
        places = torch.cat([part.places for part in self._far])
        there = places >= 0
        self.far_tokens = int(there.sum())
        positions = torch.full_like(places, -1)
        if self._positions == "clamped":
            positions[there] = 0
        elif self._positions == "original":
            positions = places
        else:
            positions[there] = places[there].argsort().argsort()
        as_stored = self._positions == "clamped" and self._rotary.zero_is_identity
        self._far_list = _list(torch.cat([part.pages for part in self._far]), positions, self._pool.device, as_stored)

    def _of_tokens(self, selected: Selection) -> _Pages:
        """Pages of our own for single tokens."""
        size, count = self._layout.block_size, len(selected.tokens)
        found = self._lease(-(-count // size))
        found.places.view(-1)[:count] = selected.tokens
        slots = found.pages.int().to(self._pool.device)
        write_pages(selected.states[0], selected.states[1], self._pool.pages(self._layer), slots, 0)
        return found

    def _list_near(self, base: int) -> PageList:
        """The local window's pages and those of fed tokens, from position `base` on."""
        if self._near_key != base:
            local = (self._local.places >= 0).flatten()
            ranks = torch.where(local, local.cumsum(0) - 1 + base, -1).view(self._local.places.shape)
            fed = base + self.document_near + torch.arange(self._fed.places.numel()).view(self._fed.places.shape)
            pages = torch.cat([self._local.pages, self._fed.pages])
            self._near = _list(pages, torch.cat([ranks, fed]), self._pool.device)
            self._near_key = base
        return self._near


def _list(pages: Tensor, positions: Tensor, device: torch.device, as_stored: bool = False) -> PageList:
    count = torch.tensor(len(pages), dtype=torch.int32)
    slots, positions, count = (part.int().to(device, non_blocking=True) for part in (pages, positions, count))
    return PageList(slots, positions, count, as_stored)


@functools.lru_cache(maxsize=4)
def _query_positions(first: int, window: int, far: int | None, device: torch.device) -> Tensor:
    """int32 `(2, W)`: where queries stand for far and near keys; all layers ask for the same."""
    near = torch.arange(first, first + window, dtype=torch.int32, device=device)
    return torch.stack([near if far is None else torch.full_like(near, far), near])
