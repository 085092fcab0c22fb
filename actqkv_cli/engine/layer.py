"""One layer's attention over [sink | chosen blocks | local window | the tokens fed since]."""

import functools
from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from actqkv_cli.engine.layout import Layout
from actqkv_cli.model.attention import Call, Rotary
from actqkv_cli.retrieval.policy import Selection
from actqkv_kernels import Workspace, block_attention

Positions = Literal["clamped", "compact", "original"]


class BlockSource(Protocol):
    """Where the document's blocks come from."""

    def blocks(self, layer: int, ids: Tensor) -> Tensor:
        """Blocks `ids` (ascending, int64, on the CPU) of one layer: `(n, 2, Hkv, b, d)`, keys then values."""
        ...


Select = Callable[[int, Tensor], Tensor | Selection]
"""(layer, un-rotated queries `(H, W, d)`) -> what to attend to beside sink and local: ascending ids of blocks, or a
Selection with tokens beside them."""


class LayerAttention:
    """The state of one layer while a session lasts. `begin` opens it at a position of the document."""

    def __init__(
        self,
        layer: int,
        source: BlockSource,
        select: Select,
        rotary: Rotary,
        layout: Layout,
        positions: Positions,
        workspace: Workspace,
        gaps: Tensor | None = None,
    ) -> None:
        """gaps: tokens of the source's last blocks that are no one's, int64 on the CPU."""
        self._layer = layer
        self._source = source
        self._select = select
        self._rotary = rotary
        self._layout = layout
        self._positions = positions
        self._workspace = workspace
        self._gaps = gaps
        self._position = -1
        self.document_near = 0  # tokens of the local window before what is fed
        self._rotated_count = 0
        self.want_mass = False
        self.mass: Tensor | None = None  # (Hkv, F + N), attention that keys received in the last call, if wanted

    def begin(self, position: int, room: int) -> None:
        """Bring in sink and local window before token `position`, and room for `room` tokens after it.

        At the position of the call before, what was fed since is dropped, and all else kept.
        """
        if position == self._position:
            self._near_count = self.document_near
            self._rotated_count = min(self._rotated_count, self._near_count)
            return
        self._position = position
        layout = self._layout
        first = layout.near_start(position)
        end = -(-position // layout.block_size)
        local, places = self._gather(torch.arange(first, end))
        self._near_places = places
        self.near_first = min(first * layout.block_size, position)
        self.document_near = self._near_count = len(self._near_places)
        self._sink = torch.arange(layout.sink_blocks(position))
        _, heads, _, dim = local.shape
        self._near = local.new_empty((2, heads, self._near_count + room, dim))
        self._near[:, :, : self._near_count] = local
        self._near_rotated = torch.empty_like(self._near[0])
        self._rotated_count = 0
        self._rotated_base = -1
        self._far = (self._near[0, :, :0], self._near[1, :, :0])
        self._chosen: Selection | None = None
        self._far_places = self._far_positions = torch.empty(0, dtype=torch.int64)

    @property
    def far_tokens(self) -> int:
        return int(self._far[0].shape[1])

    @property
    def chosen_blocks(self) -> Tensor:
        """Ids of the blocks attended beside sink and local window."""
        return self._sink[:0] if self._chosen is None else self._chosen.blocks

    @property
    def fed(self) -> Tensor:
        """Keys, un-rotated, and values of the tokens fed since `begin`: `(2, Hkv, n, d)`."""
        return self._near[:, :, self.document_near : self._near_count]

    @property
    def near_mass(self) -> Tensor:
        """Attention `(Hkv, n)` that the tokens from `near_first` on received in the last call."""
        assert self.mass is not None
        return self.mass[:, self.far_tokens :]

    def document_mass(self, tokens: int) -> Tensor:
        """Attention that each of the document's `tokens` tokens received in the last call, all heads: `(tokens,)`."""
        assert self.mass is not None
        received = self.mass.sum(dim=0)
        out = received.new_zeros(tokens)
        near = torch.arange(self.near_first, tokens) if self._gaps is None else self._near_places
        places = torch.cat([self._far_places, near]).to(out.device)
        out[places] = received[: len(places)]
        return out

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
        """query: `(H, W, d)`; key, value: `(Hkv, W, d)`, all un-rotated. Returns `(H, W, d)`."""
        window = key.shape[1]
        self._append(key, value)
        self._bring(self._select(self._layer, query), call)
        far_tokens, near_tokens = self.far_tokens, self._near_count
        far_key, far_value = self._far
        near_value = self._near[1, :, :near_tokens]
        base = self._near_base()
        if call.rotates:
            near_key = self._rotate_near(base)
            near_query = self._rotary(query, range(base + near_tokens - window, base + near_tokens))
            far_query = near_query
            if far_tokens and self._positions == "clamped":
                far_query = self._rotary(query, range(self._layout.local, self._layout.local + 1))
        else:
            near_key, near_query, far_query = self._near[0, :, :near_tokens], query, query
        result = block_attention(
            far_query,
            near_query,
            (far_key, far_value),
            (near_key, near_value),
            scaling=call.scaling,
            mask=self._mask(window, base, call, query.device),
            want_mass=self.want_mass,
            workspace=self._workspace,
        )
        self.mass = result.mass
        return result.out

    def _append(self, key: Tensor, value: Tensor) -> None:
        count, window = self._near_count, key.shape[1]
        if count + window > self._near.shape[2]:
            grown = self._near.new_empty((*self._near.shape[:2], 2 * (count + window), self._near.shape[3]))
            grown[:, :, :count] = self._near[:, :, :count]
            self._near, self._near_rotated = grown, torch.empty_like(grown[0])
            self._rotated_count = 0
        self._near[0, :, count : count + window] = key
        self._near[1, :, count : count + window] = value
        self._near_count += window

    def _bring(self, selected: Tensor | Selection, call: Call) -> None:
        """Gather and rotate the far keys: sink, blocks, single tokens; unless they are those of the call before."""
        if isinstance(selected, Tensor):
            selected = Selection(selected, self._sink[:0])
        before = self._chosen
        if (
            before is not None
            and torch.equal(selected.blocks, before.blocks)
            and torch.equal(selected.tokens, before.tokens)
        ):
            return
        self._chosen = selected
        read = torch.cat([self._sink, selected.read(self._layout.block_size)])
        (keys, values), self._far_places = self._gather(read, selected)
        if selected.states is not None and len(selected.tokens):
            keys, values = torch.cat([keys, selected.states[0]], dim=1), torch.cat([values, selected.states[1]], dim=1)
            self._far_places = torch.cat([self._far_places, selected.tokens])
        if self._positions == "original":
            self._far_positions = self._far_places - self._gaps_before(self._far_places)
        elif self._positions == "compact":
            self._far_positions = self._far_places.argsort().argsort()
        else:
            self._far_positions = torch.zeros_like(self._far_places)
        if call.rotates and len(self._far_places):
            if self._positions == "clamped":
                keys = self._rotary(keys, range(1))
            else:
                keys = self._rotary.at(keys, self._far_positions.to(keys.device))
        self._far = (keys, values)

    def _gather(self, ids: Tensor, selected: Selection | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values of blocks `(2, Hkv, n, d)`, and which tokens they are `(n,)`. selected: what of them, if not
        all."""
        size = self._layout.block_size
        states = _join(self._source.blocks(self._layer, ids))
        places = (ids[:, None] * size + torch.arange(size)).flatten()
        kept = places < self._position
        if self._gaps is not None:
            kept &= ~torch.isin(places, self._gaps)
        if selected is not None:
            kept &= shown(places, selected, self._sink, size)
        return (states, places) if kept.all() else (states[:, :, kept.to(states.device)], places[kept])

    def _gaps_before(self, places: Tensor) -> Tensor | int:
        """How many tokens before each of `places` are no one's."""
        return 0 if self._gaps is None else torch.searchsorted(self._gaps, places)

    def _near_base(self) -> int:
        """The position that the first key of the local window takes."""
        if self._positions == "original":
            return self.near_first - int(self._gaps_before(torch.tensor(self.near_first)))
        return self.far_tokens if self._positions == "compact" else 0

    def _rotate_near(self, base: int) -> Tensor:
        """The near keys, rotated; those rotated before at the same base are kept."""
        if base != self._rotated_base:
            self._rotated_base, self._rotated_count = base, 0
        start, end = self._rotated_count, self._near_count
        self._near_rotated[:, start:end] = self._rotary(self._near[0, :, start:end], range(base + start, base + end))
        self._rotated_count = end
        return self._near_rotated[:, :end]

    def _mask(self, window: int, base: int, call: Call, device: torch.device) -> Tensor | None:
        """True where a query may look: causal inside the window, within the sliding window where there is one."""
        if call.sliding_window is None:
            return None if window == 1 else _causal(window, device)
        near = torch.arange(base, base + self._near_count, device=device)
        query = near[-window:, None]
        far_distance = query - self._far_positions.to(device)
        if self._positions == "clamped":
            far_distance = torch.full_like(far_distance, self._layout.local)
        distance = torch.cat([far_distance, query - near], dim=1)
        return (distance >= 0) & (distance < call.sliding_window)


def shown(places: Tensor, selected: Selection, sink: Tensor, block_size: int) -> Tensor:
    """Which of tokens `places`, of blocks that were read for a selection and of the sink's `(s,)`, are attended to."""
    if selected.states is not None or not len(selected.tokens):
        return torch.ones_like(places, dtype=torch.bool)
    whole = torch.cat([sink, selected.blocks])
    return torch.isin(places // block_size, whole) | torch.isin(places, selected.tokens)


@functools.lru_cache(maxsize=2)
def _causal(window: int, device: torch.device) -> Tensor:
    return torch.ones((window, window), dtype=torch.bool, device=device).tril()


def _join(blocks: Tensor) -> Tensor:
    """`(n, 2, Hkv, b, d)` -> `(2, Hkv, n * b, d)`."""
    n, two, heads, size, dim = blocks.shape
    return blocks.permute(1, 2, 0, 3, 4).reshape(two, heads, n * size, dim)
