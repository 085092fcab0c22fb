"""One layer's attention over [sink | chosen blocks | local window | the tokens fed since], in the pages of a pool."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from actqkv_cli.engine.blocks import BlockPool, Pin
from actqkv_cli.engine.layout import Layout
from actqkv_cli.model.causal_lm import AttentionCall
from actqkv_cli.model.load import kernels_run
from actqkv_cli.model.rotary import Rotary
from actqkv_cli.retrieval.policy import PerToken, RetrievalPolicy, Selection
from actqkv_kernels import PageList, Workspace, paged_attention, write_pages

Positions = Literal["clamped", "compact", "original"]
Select = Callable[[int, Tensor], Tensor | Selection]
"""(layer, un-rotated queries `(H, W, d)`) -> what to attend to beside sink and local: ascending ids of blocks, or a
Selection with tokens beside them."""


@dataclass(frozen=True)
class StepState:
    """Where a recorded decoding step stands, on the device.

    offset: int32 `()`, tokens fed before; query_positions: int32 `(2, 1)`, of the token that is fed; chosen: int32
    `(max_blocks,)`, the blocks that the step selected, then -1.
    """

    offset: Tensor
    query_positions: Tensor
    chosen: Tensor


@dataclass(frozen=True)
class _Pages:
    """Pages of one side. places: int64 `(n, b)` on the CPU, which token each key is, -1: no one's."""

    pages: Tensor
    places: Tensor
    pins: tuple[Pin, ...]

    def release(self) -> None:
        for pin in self.pins:
            pin.release()


class Layer:
    """The state of one layer while a question or a document's reading lasts. `begin` opens it at a position of the
    document, and `close` lets go of its pages.

    return_mass: whether `attend` notes the attention that keys receive; on_kernels: whether the kernels run; recording:
    whether a step is recorded or played (`engine.recorded`): then no number of the host may matter; selects: whether it
    selects anew.
    """

    def __init__(
        self,
        layer: int,
        pool: BlockPool,
        select: Select,
        rotary: Rotary,
        layout: Layout,
        positions: Positions,
        workspace: Workspace,
        gaps: Tensor | None = None,
    ) -> None:
        """gaps: tokens of the pool's blocks that are no one's, int64 on the CPU."""
        self._layer = layer
        self.pool = pool
        self._select = select
        self._rotary = rotary
        self._layout = layout
        self._positions = positions
        self._workspace = workspace
        self._gaps = gaps
        self._position = -1
        self.local_tokens = self.far_tokens = 0  # tokens of the local window before what is fed; and of far keys
        self.return_mass = False
        self.on_kernels = kernels_run(rotary.device)
        self.recording = self.selects = False
        self._mass = torch.empty(0)  # (Hkv, F + N, b), of the last call
        self._far: list[_Pages] = []
        self._local = self._fed = _Pages(torch.empty(0), torch.empty(0), ())
        self._played_pin: Pin | None = None

    def begin(self, position: int, capacity: int) -> None:
        """Load the local window before token `position`, and have room for `capacity` tokens after it.

        At the position of the call before, what was fed since is dropped, and all else kept.
        """
        self.fed_count = 0
        if position != self._position:
            self.close()
            self._position = position
            layout = self._layout
            first = layout.near_start(position)
            self.near_first = min(first * layout.block_size, position)
            self._local = self._of_blocks(torch.arange(first, -(-position // layout.block_size)))
            self.local_tokens = int((self._local.places >= 0).sum())
            self._fed = self._lease(0)
            self._sink = torch.arange(layout.sink_blocks(position))
            self._chosen: Selection | None = None
            self._played: Tensor | None = None  # what a recorded step chose
            self.far_tokens = 0
        self._ensure_capacity(capacity)

    def close(self) -> None:
        """Let go of all pages. On the thread that owns the pool; may be called twice."""
        self._position = -1
        for part in (*self._far, self._local, self._fed):
            part.release()
        self._far = []
        # The keys that were gathered for the lists go with them, and not when a collector finds the run.
        nothing = torch.empty(0, self._layout.block_size)
        self._far_list = self._near = _list(nothing[:, 0], nothing, self.pool.device)
        self._pin_played(None)

    @property
    def chosen_blocks(self) -> Tensor:
        """Ids of the blocks attended beside sink and local window."""
        if self._played is not None:
            return self._played
        return self._sink[:0] if self._chosen is None else self._chosen.blocks

    @property
    def fed(self) -> Tensor:
        """Keys, un-rotated, and values of the tokens fed since `begin`: `(2, Hkv, n, d)`."""
        pages = self.pool.pages(self._layer)
        states = pages[self._fed.pages.to(pages.device)]  # (n, 2, Hkv, b, d)
        return states.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, : self.fed_count]

    def document_mass(self, tokens: int) -> Tensor:
        """Attention that each of the document's `tokens` tokens received in the last call, all heads: `(tokens,)`."""
        received = self._mass.sum(dim=0).flatten()
        places = torch.cat([part.places for part in (*self._far, self._local, self._fed)]).flatten()
        ours = (places >= 0) & (places < tokens)
        out = received.new_zeros(tokens)
        out[places[ours].to(out.device)] = received[ours.to(out.device)]
        return out

    @property
    def near_mass(self) -> Tensor:
        """Attention `(Hkv, n)` that the tokens from `near_first` on received in the last call."""
        near = self._mass[:, sum(len(part.pages) for part in self._far) :].flatten(1)
        return near[:, : self.local_tokens + self.fed_count]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        """query: `(H, W, d)`; key, value: `(Hkv, W, d)`, all un-rotated. Returns `(H, W, d)`."""
        start, window = self.fed_count, key.shape[1]
        offset: int | Tensor
        if self.recording:
            base, offset, where = self._near_base_listed, self._state.offset, self._state.query_positions
            tables = self._tables
            if self.selects:
                self._choose(query)
        else:
            self._ensure_capacity(start + window)
            self.fed_count += window
            self._list_far(self._select(self._layer, query))
            base, offset = self._near_base(), start
            first = base + self.local_tokens + start
            where = _query_positions(first, window, self._far_query_position, query.device)
            tables = self._rotary.halves(self._last_position(base))
        near = self._list_near(base)
        pages = self.pool.pages(self._layer)
        write_pages(key, value, pages, near.slots[len(self._local.pages) :], offset)
        result = paged_attention(
            query,
            pages[:, 0],
            pages[:, 1],
            self._far_list,
            near,
            where,
            scaling=call.scaling,
            rotation=tables if call.rotates else None,
            sliding_window=call.sliding_window,
            return_mass=self.return_mass,
            workspace=self._workspace,
        )
        if result.mass is not None:
            self._mass = result.mass
        return result.out

    def next_positions(self) -> Tensor:
        """Query positions `(2, 1)` of the next token that is fed."""
        first = self._near_base() + self.local_tokens + self.fed_count
        return _query_positions(first, 1, self._far_query_position, self.pool.device)

    @property
    def pace(self) -> Tensor:
        """By how much query positions `(2, 1)` differ from one token to the next."""
        far = 1 if self._far_query_position is None else 0
        return torch.tensor([[far], [1]], dtype=torch.int32, device=self.pool.device)

    @property
    def simple(self) -> bool:
        """Whether a block's positions depend on nothing but the block."""
        return self._gaps is None and self._positions == "original"

    def record(self, state: StepState, policy: RetrievalPolicy) -> None:
        """Make ready for recorded steps: what they read has one place from now on."""
        self._state, self._policy = state, policy
        base = self._near_base()
        self._list_near(base)
        self._tables = self._rotary.halves(self._last_position(base))  # others may replace them by larger ones
        if not isinstance(policy, PerToken):
            return
        max_blocks = len(state.chosen)
        self.pool.reserve_free(3 * max_blocks)  # so that what one token chose is still there for the next
        far, sinks = self._far_list, len(self._sink)
        extra = sinks + max_blocks - len(far.slots)
        self._far_list = PageList(
            pad(far.slots, (0, extra)), pad(far.positions, (0, 0, 0, extra), value=-1), far.count, far.as_stored
        )
        self._far_list.count.fill_(sinks + max_blocks)
        self._table = self.pool.table(self._layer)

    def reads(self) -> tuple[Tensor, ...]:
        """What a recorded step reads besides its moment."""
        return (self.pool.pages(self._layer), *self._tables)

    @property
    def has_room(self) -> bool:
        """Whether one more token can be fed where there are pages for it."""
        return self.fed_count < self._fed.places.numel()

    def is_where(self, reads: tuple[Tensor, ...]) -> bool:
        """Whether the pages are still those that a recorded step reads."""
        return self.pool.pages(self._layer) is reads[0]

    def _choose(self, query: Tensor) -> None:
        """Select on the device, and list what of it is in the pool."""
        assert isinstance(self._policy, PerToken)
        ids = self._policy.choose(self._layer, query).ids
        self._state.chosen.copy_(ids)
        page = self._table[ids.clamp(min=0)]
        there = (ids >= 0) & (page >= 0)
        size, sinks = self._layout.block_size, len(self._sink)
        places = ids[:, None] * size + torch.arange(size, dtype=torch.int32, device=ids.device)
        self._far_list.slots[sinks:] = torch.where(there, page, 0)
        self._far_list.positions[sinks:] = torch.where(there[:, None] & (places < self._position), places, -1)

    def note_chosen(self, ids: Tensor, load: bool) -> None:
        """A recorded step chose these blocks, int64 `(n,)` on the CPU. load: have them in the pool, and pin them."""
        self._pin_played(self.pool.pin(self._layer, self.pool.load(self._layer, ids)) if load else None)
        self._played = ids
        size = self._layout.block_size
        self.far_tokens = int((self._position - torch.cat([self._sink, ids]) * size).clamp(max=size).sum())

    def _pin_played(self, pin: Pin | None) -> None:
        if self._played_pin is not None:
            self._played_pin.release()
        self._played_pin = pin

    @property
    def _far_query_position(self) -> int | None:
        """Where queries stand for the far keys, if that is one place."""
        return self._layout.local if self._positions == "clamped" else None

    def _near_base(self) -> int:
        """The position that the first key of the local window takes."""
        if self._positions == "original":
            return self.near_first - int(self._gaps_before(torch.tensor(self.near_first)))
        return self.far_tokens if self._positions == "compact" else 0

    def _gaps_before(self, places: Tensor) -> Tensor | int:
        """How many tokens before each of `places` are no one's."""
        return 0 if self._gaps is None else torch.searchsorted(self._gaps, places)

    def _last_position(self, base: int) -> int:
        """Behind all positions that queries and keys may have."""
        near = self._local.places.numel() + self._fed.places.numel()
        return max(base + near, self._layout.local) + 1

    def _ensure_capacity(self, tokens: int) -> None:
        """Pages for so many fed tokens."""
        size, have = self._layout.block_size, len(self._fed.pages)
        if tokens > have * size:
            more = self._lease(max(-(-tokens // size) - have, have))
            pages = torch.cat([self._fed.pages, more.pages])
            places = self._position + torch.arange(len(pages) * size).view(-1, size)
            self._fed = _Pages(pages, places, (*self._fed.pins, *more.pins))
            self._near_base_listed = -1  # neither list is of these pages

    def _lease(self, count: int) -> _Pages:
        pages, pin = self.pool.lease(self._layer, count)
        return _Pages(pages, torch.full((count, self._layout.block_size), -1), (pin,))

    def _of_blocks(self, ids: Tensor, selected: Selection | None = None) -> _Pages:
        """The pages of blocks, and which tokens they hold: no gaps, none behind the document's end, and of blocks that
        are not selected as a whole those that are."""
        size = self._layout.block_size
        pages = self.pool.load(self._layer, ids)
        places = ids[:, None] * size + torch.arange(size)
        hidden = places >= self._position
        if self._gaps is not None:
            hidden |= torch.isin(places, self._gaps)
        if selected is not None:
            hidden |= ~shown(places, selected, self._sink, size)
        return _Pages(pages, places.masked_fill(hidden, -1), (self.pool.pin(self._layer, pages),))

    def _list_far(self, selected: Tensor | Selection) -> None:
        """List the far pages: sink, blocks, and pages of single tokens; unless they are those of the call before."""
        if isinstance(selected, Tensor):
            selected = Selection(selected, self._sink[:0])
        before = self._chosen
        if (
            before is not None
            and self._played is None
            and torch.equal(selected.blocks, before.blocks)
            and torch.equal(selected.tokens, before.tokens)
        ):
            return
        self._chosen, self._played, left = selected, None, self._far
        read = torch.cat([self._sink, selected.read(self._layout.block_size)])
        self._far = [self._of_blocks(read, selected)]
        if selected.states is not None and len(selected.tokens):
            self._far.append(self._of_tokens(selected.tokens, selected.states))
        self._pin_played(None)
        for part in left:  # after the new ones are pinned: what is in both stays where it is
            part.release()
        places = torch.cat([part.places for part in self._far])
        there = places >= 0
        self.far_tokens = int(there.sum())
        positions = torch.full_like(places, -1)
        if self._positions == "clamped":
            positions[there] = 0
        elif self._positions == "original":
            positions[there] = places[there] - self._gaps_before(places[there])
        else:
            positions[there] = places[there].argsort().argsort()
        as_stored = self._positions == "clamped" and self._rotary.zero_is_identity
        self._far_list = _list(torch.cat([part.pages for part in self._far]), positions, self.pool.device, as_stored)

    def _of_tokens(self, tokens: Tensor, states: Tensor) -> _Pages:
        """Pages of our own for single tokens, whose states are `(2, Hkv, m, d)`."""
        size, count = self._layout.block_size, len(tokens)
        found = self._lease(-(-count // size))
        found.places.view(-1)[:count] = tokens
        slots = found.pages.int().to(self.pool.device)
        write_pages(states[0], states[1], self.pool.pages(self._layer), slots, 0)
        return found

    def _list_near(self, base: int) -> PageList:
        """The local window's pages and those of fed tokens, from position `base` on."""
        if self._near_base_listed != base:
            local = (self._local.places >= 0).flatten()
            ranks = torch.where(local, local.cumsum(0) - 1 + base, -1).view(self._local.places.shape)
            fed = base + self.local_tokens + torch.arange(self._fed.places.numel()).view(self._fed.places.shape)
            pages = torch.cat([self._local.pages, self._fed.pages])
            self._near = _list(pages, torch.cat([ranks, fed]), self.pool.device)
            self._near_base_listed = base
        return self._near


def shown(places: Tensor, selected: Selection, sink: Tensor, block_size: int) -> Tensor:
    """Which of tokens `places`, of blocks that were read for a selection and of the sink's `(s,)`, are attended to."""
    if selected.states is not None or not len(selected.tokens):
        return torch.ones_like(places, dtype=torch.bool)
    whole = torch.cat([sink, selected.blocks])
    return torch.isin(places // block_size, whole) | torch.isin(places, selected.tokens)


def _list(pages: Tensor, positions: Tensor, device: torch.device, as_stored: bool = False) -> PageList:
    count = torch.tensor(len(pages), dtype=torch.int32)
    slots, positions, count = (part.int().to(device, non_blocking=True) for part in (pages, positions, count))
    return PageList(slots, positions, count, as_stored)


@functools.lru_cache(maxsize=4)
def _query_positions(first: int, window: int, far: int | None, device: torch.device) -> Tensor:
    """int32 `(2, W)`: where queries stand for far and near keys; all layers ask for the same."""
    near = torch.arange(first, first + window, dtype=torch.int32, device=device)
    return torch.stack([near if far is None else torch.full_like(near, far), near])
