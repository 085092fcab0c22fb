"""Where blocks come from: a bounded cache in front of the disk, and, while a document is read, its newest tokens."""

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from actqkv_cli.engine.layout import Layout
from actqkv_cli.store.blocks import BlockFiles
from actqkv_cli.store.manifest import Geometry, ReadingSettings
from actqkv_cli.store.writer import DocumentWriter
from actqkv_kernels import anchor_representatives, write_pages

ReadBlocks = Callable[[int, Tensor], Tensor]
"""(layer, ascending ids) -> `(n, 2, Hkv, b, d)` on the CPU, from disk."""


_Numbers = npt.NDArray[np.integer[Any]]
_Read = tuple[Tensor, torch.cuda.Event | None]
"""Blocks on the device, and when they have arrived there."""


class BlockPool:
    """The blocks read last, `capacity` of each layer (0 until `reserve`), least recently used leave first.

    A block has a page of its own in its layer's pages; `load` tells which. A pinned page does not leave.
    """

    def __init__(self, read: ReadBlocks, layers: int, blocks: int, device: torch.device) -> None:
        """blocks: how many `read` knows of."""
        self._read = read
        self.device = device
        self._pages: list[Tensor | None] = [None] * layers
        self._page_of = np.full((layers, blocks), -1, np.int32)
        self._block_in = np.full((layers, 0), -1, np.int32)
        self._used = np.zeros((layers, 0), np.int64)
        self._pins = np.zeros((layers, 0), np.int32)
        self._tables: dict[int, Tensor] = {}
        self._clock = 0
        self._prefetching: dict[int, tuple[_Numbers, Future[_Read]]] = {}

    @property
    def _capacity(self) -> int:
        return self._used.shape[1]

    @property
    def bytes_held(self) -> int:
        """Memory that the pages take, in bytes."""
        return sum(pages.nbytes for pages in self._pages if pages is not None)

    @torch.inference_mode(False)  # what is made within it can only be written to within it
    def reserve(self, capacity: int) -> None:
        """Keep at least so many blocks of each layer from now on."""
        more = ((0, 0), (0, capacity - self._capacity))
        if more[1][1] > 0:
            self._block_in = np.pad(self._block_in, more, constant_values=-1)
            self._used, self._pins = np.pad(self._used, more), np.pad(self._pins, more)
            for layer, pages in enumerate(self._pages):
                if pages is not None:
                    grown = pages.new_empty((capacity, *pages.shape[1:]))
                    grown[: len(pages)] = pages
                    self._pages[layer] = grown

    def reserve_free(self, count: int) -> None:
        """Keep at least so many blocks of each layer beside what is pinned now."""
        self.reserve(int((self._pins > 0).sum(axis=1).max()) + count)

    def pages(self, layer: int) -> Tensor:
        """All pages of a layer, `(P, 2, Hkv, b, d)`: keys, un-rotated, then values. A `reserve` replaces them."""
        pages = self._pages[layer]
        return self._made(layer) if pages is None else pages

    @torch.inference_mode(False)
    def _made(self, layer: int) -> Tensor:
        none = self._read(layer, torch.empty(0, dtype=torch.int64))
        shape = (self._capacity, *none.shape[1:])
        pages = self._pages[layer] = torch.empty(shape, dtype=none.dtype, device=self.device)
        return pages

    def has(self, layer: int, ids: Tensor) -> bool:
        """Whether blocks `ids` (int64, on the CPU) all are in pages."""
        return bool((self._page_of[layer, ids.numpy()] >= 0).all())

    def uses(self, ids: Tensor) -> bool:
        """Whether blocks `(layers, n)` (int64, on the CPU, -1 for none) all are in pages; if so, they are used now."""
        layers, columns = np.nonzero(ids.numpy() >= 0)
        pages = self._page_of[layers, ids.numpy()[layers, columns]]
        if (pages < 0).any():
            return False
        self._clock += 1
        self._used[layers, pages] = self._clock
        return True

    @torch.inference_mode(False)
    def table(self, layer: int) -> Tensor:
        """The page of each block, -1 for none: int32 `(blocks,)` on the device, kept up to date."""
        if layer not in self._tables:
            self._tables[layer] = torch.from_numpy(self._page_of[layer]).to(self.device, copy=True)
        return self._tables[layer]

    def prefetch(self, layer: int, ids: Tensor) -> None:
        """Begin to read what `load` will soon be asked for, while other layers compute."""
        missing = ids.numpy()[self._page_of[layer, ids.numpy()] < 0]
        if 0 < len(missing) <= self._capacity:
            self._prefetching[layer] = missing, _reader().submit(self._fetch, layer, missing)

    def stop_prefetching(self) -> None:
        """Nothing is read any more that was not asked for again."""
        coming = [read for _, read in self._prefetching.values() if not read.cancel()]
        self._prefetching.clear()
        wait(coming)

    def load(self, layer: int, ids: Tensor) -> Tensor:
        """The pages in which blocks `ids` (ascending, int64, on the CPU) now are: int64 `(n,)`, on the CPU."""
        wanted = ids.numpy()
        coming, read = self._prefetching.pop(layer, (wanted[:0], None))
        # What fails here is read again below, if it is wanted: a damaged block that is not must not fail the question.
        if read is not None and not read.exception():
            self._keep(layer, coming, read.result())
        pages = self._page_of[layer, wanted]
        missing = wanted[pages < 0]
        if len(missing):
            here = Pin(self, layer, pages[pages >= 0])
            try:
                self._keep(layer, missing, self._fetch(layer, missing))
            finally:
                here.release()
            pages = self._page_of[layer, wanted]
        self._touch(layer, pages)
        return torch.from_numpy(pages.astype(np.int64))

    def blocks(self, layer: int, ids: Tensor) -> Tensor:
        """Blocks `ids` (ascending, int64, on the CPU) of one layer: `(n, 2, Hkv, b, d)`, keys then values.

        More than the capacity are not kept.
        """
        if len(ids) > self._capacity or not len(ids):
            return self._read(layer, ids).to(self.device)
        pages = self.load(layer, ids)
        return self.pages(layer)[pages.to(self.device)]

    def pin(self, layer: int, pages: Tensor) -> "Pin":
        """Keep pages `(n,)` where they are until what is returned is released."""
        return Pin(self, layer, pages.numpy())

    def lease(self, layer: int, count: int) -> tuple[Tensor, "Pin"]:
        """Pages `(count,)`, int64 on the CPU, that are no block's, and their pin; they hold anything."""
        pages = self._free(layer, count)
        self._forget(layer, pages)
        found = torch.from_numpy(pages)
        return found, self.pin(layer, found)

    def _touch(self, layer: int, pages: _Numbers) -> None:
        self._clock += 1
        self._used[layer, pages] = self._clock

    def _fetch(self, layer: int, ids: _Numbers) -> _Read:
        """Blocks on the device. What comes to a GPU from the host comes on a stream of its own, beside what is
        computed; what lies there already is read in turn with what computes it."""
        states = self._read(layer, torch.from_numpy(ids))
        if self.device.type != "cuda" or states.is_cuda:
            return states.to(self.device), None
        with torch.cuda.stream(_copies(self.device)):
            return states.to(self.device, non_blocking=True), torch.cuda.current_stream().record_event()

    def _keep(self, layer: int, ids: _Numbers, read: _Read) -> None:
        states, arrived = read
        new = self._free(layer, len(ids))
        self._forget(layer, new)
        self._block_in[layer, new] = ids
        self._place(layer, ids, new)
        if arrived is not None:
            torch.cuda.current_stream().wait_event(arrived)
            states.record_stream(torch.cuda.current_stream())
        self.pages(layer)[torch.from_numpy(new).to(self.device, non_blocking=True)] = states
        self._touch(layer, new)

    def _free(self, layer: int, count: int) -> _Numbers:
        """Pages that are not pinned, the least recently used; the pool grows where there are too few."""
        free = np.flatnonzero(self._pins[layer] == 0)
        if len(free) < count:
            self.reserve(self._capacity + count - len(free))
            free = np.flatnonzero(self._pins[layer] == 0)
        return free[np.argpartition(self._used[layer, free], count - 1)[:count]] if count else free[:0]

    def _forget(self, layer: int, pages: _Numbers) -> None:
        """Whatever blocks were in these pages are no longer there."""
        before = self._block_in[layer, pages]
        self._place(layer, before[before >= 0], np.int32(-1))
        self._block_in[layer, pages] = -1

    def _place(self, layer: int, ids: _Numbers, pages: _Numbers | np.int32) -> None:
        self._page_of[layer, ids] = pages
        if layer in self._tables:
            changed = torch.from_numpy(np.stack([ids, self._page_of[layer, ids]])).to(self.device, non_blocking=True)
            self._tables[layer][changed[0]] = changed[1].int()


class Pin:
    """See `BlockPool.pin`."""

    def __init__(self, pool: BlockPool, layer: int, pages: _Numbers) -> None:
        self._pool, self._layer, self._pages = pool, layer, pages
        pool._pins[layer, pages] += 1

    def release(self) -> None:
        """The pages may leave. On the thread that owns the pool; a second time nothing happens."""
        self._pool._pins[self._layer, self._pages] -= 1
        self._pages = self._pages[:0]


@functools.cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@functools.cache
def _reader() -> ThreadPoolExecutor:
    """One thread: the disk is kept busy, and the model keeps the processor."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="actqkv-prefetch")


class GrowingBlocks:
    """The blocks of a document that is being read: the newest in memory, the rest in segments on disk.

    A block's representative is settled when it leaves the local window, a segment is written when all its blocks
    are settled, while the next windows are read. Memory holds two segments, a local window and a window, whatever the
    document's length.
    """

    def __init__(
        self, writer: DocumentWriter, geometry: Geometry, reading: ReadingSettings, tokens: int, device: torch.device
    ) -> None:
        self._writer = writer
        self._geometry = geometry
        self._layout = Layout(geometry.block_size, reading.sink, reading.local, reading.budget)
        self._anchor = reading.representative == "anchor"
        self._tokens = tokens
        self.total_blocks = -(-tokens // geometry.block_size)
        self._device = device
        self._files = BlockFiles(writer.folder, geometry, lambda: writer.segments)
        dtype = getattr(torch, geometry.dtype)
        shape = (geometry.kv_heads, geometry.head_dim)
        self.representatives = torch.zeros((geometry.layers, self.total_blocks, 1, *shape), dtype=dtype, device=device)
        self.l1 = torch.zeros((geometry.layers, self.total_blocks, 2, *shape), dtype=dtype)
        in_memory = geometry.segment_blocks + (reading.local + 2 * reading.window) // geometry.block_size
        self._pending = torch.zeros(
            (geometry.layers, in_memory, 2, geometry.kv_heads, geometry.block_size, geometry.head_dim),
            dtype=dtype,
            device=device,
        )
        self._mass = torch.zeros(
            (geometry.layers, in_memory if self._anchor else 0, geometry.kv_heads, geometry.block_size),
            device=device,
        )
        self._means = torch.zeros(
            (geometry.layers, 0 if self._anchor else in_memory, *shape), dtype=dtype, device=device
        )
        self._leaving: Tensor | None = None  # the segment that is being written: (L, n, 2, Hkv, b, d)
        self._writing: Future[None] | None = None
        self._first = self._settled = sum(segment.blocks for segment in writer.segments)
        done = 0
        for number, segment in enumerate(writer.segments):
            blocks, representatives = writer.load_segment(number)
            now = slice(done, done + segment.blocks)
            self.representatives[:, now] = representatives.to(device)
            self.l1[:, now] = tokens_at(blocks, self._tokens_of(now) - 1)
            done = now.stop

    def close(self) -> None:
        """Have the last segment written, and close those that were read."""
        if self._writing is not None:
            self._writing.exception()  # it was raised by `advance`, or something else is being raised
        self._files.close()

    @property
    def resume_at(self) -> int:
        """The token at which reading begins: 0, or the end of the last whole segment."""
        return min(self._first * self._geometry.block_size, self._tokens)

    def blocks(self, layer: int, ids: Tensor) -> Tensor:
        """As `BlockPool.blocks`."""
        leaving = self._first - (0 if self._leaving is None else self._leaving.shape[1])
        borders = torch.searchsorted(ids, torch.tensor([leaving, self._first]))
        oldest, left, newest = ids.tensor_split(borders)
        found = [self._files.read(layer, oldest).to(self._device)] if len(oldest) else []
        if self._leaving is not None and len(left):
            found.append(self._leaving[layer, (left - leaving).to(self._leaving.device)])
        if len(newest) or not found:
            found.append(self._pending[layer, (newest - self._first).to(self._pending.device)])
        return found[0] if len(found) == 1 else torch.cat(found)

    def append(self, layer: int, position: int, key: Tensor, value: Tensor) -> None:
        """Keep a window's keys and values `(Hkv, W, d)`; it begins at token `position`, at a block's start."""
        first = position // self._geometry.block_size - self._first
        count = -(-key.shape[1] // self._geometry.block_size)
        slots = torch.arange(first, first + count, device=key.device)
        means = None if self._anchor else self._means[layer]
        write_pages(key, value, self._pending[layer], slots, 0, means)

    def add_mass(self, layer: int, position: int, mass: Tensor) -> None:
        """Add attention that keys received, `(Hkv, n)` fp32, from token `position` on, at a block's start."""
        size = self._geometry.block_size
        first = position // size - self._first
        mass = torch.nn.functional.pad(mass, (0, -mass.shape[1] % size)).unflatten(1, (-1, size)).transpose(0, 1)
        skip = max(0, -first)  # blocks of the local window that were settled before an interruption
        self._mass[layer, first + skip : first + len(mass)] += mass[skip:]

    def advance(self, position: int) -> None:
        """All layers have seen the tokens before `position`: settle what left the local window, write what is whole."""
        finished = position >= self._tokens
        self._settle(self.total_blocks if finished else self._layout.near_start(position))
        size = self._geometry.segment_blocks
        while self._settled - self._first >= size or (finished and self._first < self.total_blocks):
            self._write(min(size, self._settled - self._first))
        if finished:
            self._written()

    def _settle(self, end: int) -> None:
        begin, size = self._settled, self._geometry.block_size
        if end <= begin:
            return
        ours = slice(begin - self._first, end - self._first)
        keys = self._pending[:, ours, 0]
        tokens = self._tokens_of(slice(begin, end)).to(keys.device)
        if self._anchor:
            real = torch.arange(size, device=keys.device) < tokens[:, None]
            mass = self._mass[:, ours].masked_fill(~real[:, None], float("-inf"))
            self.representatives[:, begin:end] = anchor_representatives(keys, mass)
        else:
            self.representatives[:, begin:end, 0] = self._means[:, ours]
        self._settled = end

    def _tokens_of(self, blocks: slice) -> Tensor:
        """How many tokens each of the blocks holds."""
        size = self._geometry.block_size
        return (self._tokens - torch.arange(blocks.start, blocks.stop) * size).clamp(max=size)

    def _write(self, count: int) -> None:
        self._written()
        self._leaving = self._pending[:, :count].clone()
        representatives = self.representatives[:, self._first : self._first + count].clone()
        ours = slice(self._first, self._first + count)
        self._writing = _segment_writer().submit(
            self._write_segment, ours, self._leaving, representatives, self._done()
        )
        for kept in (self._pending, self._mass if self._anchor else self._means):
            left = kept.shape[1] - count
            kept[:, :left] = kept[:, count:].clone()
            kept[:, left:] = 0
        self._first += count

    def _written(self) -> None:
        """Wait until the segment before is on the disk. Raises what writing it raised."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()
            self._leaving = None

    def _write_segment(
        self, ours: slice, blocks: Tensor, representatives: Tensor, done: torch.cuda.Event | None
    ) -> None:
        """The document's blocks `ours`, `(L, n, 2, Hkv, b, d)`: to the host beside what is computed, and to disk."""
        if done is not None:
            with torch.cuda.stream(_copies(blocks.device)):
                torch.cuda.current_stream().wait_event(done)
                host = [torch.empty_like(part, device="cpu", pin_memory=True) for part in (blocks, representatives)]
                for here, there in zip(host, (blocks, representatives), strict=True):
                    here.copy_(there, non_blocking=True)
                torch.cuda.current_stream().synchronize()
            blocks, representatives = host
        blocks, representatives = blocks.cpu(), representatives.cpu()
        with torch.inference_mode():  # in which the tensor may have been made
            self.l1[:, ours] = tokens_at(blocks, self._tokens_of(ours) - 1)
        self._writer.write_segment(list(blocks), representatives)

    def _done(self) -> torch.cuda.Event | None:
        """When all that was asked of a GPU so far is done."""
        return torch.cuda.current_stream().record_event() if self._pending.is_cuda else None


@functools.cache
def _segment_writer() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="actqkv-write")


def tokens_at(blocks: Tensor, places: Tensor) -> Tensor:
    """Keys and values of one token of each block. blocks: `(..., n, 2, Hkv, b, d)`; places: `(n,)` in [0, b).
    Returns `(..., n, 2, Hkv, d)`."""
    index = places.to(blocks.device).view(-1, 1, 1, 1, 1).expand(*blocks.shape[:-2], 1, blocks.shape[-1])
    return blocks.gather(-2, index).squeeze(-2)
