"""The pool of blocks: whatever was asked for, read ahead, held or leased, a block's page holds that block."""

import pytest
import torch
from torch import Tensor

from actqkv_cli.engine.blocks import BlockPool

BLOCKS = 40
CPU = torch.device("cpu")


class Store:
    """Two layers of blocks, which counts what is read, and fails when told to."""

    def __init__(self) -> None:
        self.content = torch.randn(2, BLOCKS, 2, 1, 4, 2, generator=torch.Generator().manual_seed(0))
        self.read: list[int] = []
        self.fails = False

    def __call__(self, layer: int, ids: Tensor) -> Tensor:
        assert ids.tolist() == sorted(set(ids.tolist()))
        if self.fails:
            raise OSError("unplugged")
        self.read.extend(ids.tolist())
        return self.content[layer, ids]

    def pool(self, capacity: int) -> BlockPool:
        pool = BlockPool(self, 2, BLOCKS, CPU)
        pool.reserve(capacity)
        return pool


@pytest.fixture
def store() -> Store:
    return Store()


def some(draw: torch.Generator, most: int) -> Tensor:
    count = int(torch.randint(0, most + 1, (1,), generator=draw))
    return torch.randperm(BLOCKS, generator=draw)[:count].sort().values


@pytest.mark.parametrize("capacity", [0, 1, 3, 7, 100])
def test_the_pool_gives_what_the_store_has(capacity: int, store: Store) -> None:
    pool, draw = store.pool(capacity), torch.Generator().manual_seed(2)
    for step in range(300):
        layer, ids = step % 2, some(draw, 10)
        assert torch.equal(pool.blocks(layer, ids), store.content[layer, ids])


def test_pages_hold_what_was_brought_whatever_is_read_ahead_held_and_leased(store: Store) -> None:
    pool, draw = store.pool(12), torch.Generator().manual_seed(3)
    held = []
    for step in range(400):
        layer, ids = step % 2, some(draw, 6)
        if step % 3 == 0:
            pool.prefetch(layer, some(draw, 12))
        pages = pool.load(layer, ids)
        held.append((layer, pages, store.content[layer, ids], pool.pin(layer, pages)))
        if step % 5 == 0:
            leased, pin = pool.lease(layer, 3)
            pool.pages(layer)[leased] = -7.0
            held.append((layer, leased, torch.tensor(-7.0), pin))
        for layer, pages, content, _ in held:
            assert (pool.pages(layer)[pages] == content).all()
        while len(held) > 5:
            held.pop(int(torch.randint(0, len(held), (1,), generator=draw)))[3].release()


def test_what_was_used_last_stays(store: Store) -> None:
    pool = store.pool(3)
    for ids in ([1, 2, 3], [1, 2, 3], [1, 4], [1, 3], [2]):
        pool.blocks(0, torch.tensor(ids))
    assert store.read == [1, 2, 3, 4, 2]


def test_a_larger_pool_keeps_what_it_had(store: Store) -> None:
    pool, ids = store.pool(3), torch.tensor([4, 8, 9])
    pool.load(0, ids)
    pool.reserve(20)
    pool.load(0, torch.arange(20, 30))
    assert torch.equal(pool.pages(0)[pool.load(0, ids)], store.content[0, ids])
    assert store.read == [4, 8, 9, *range(20, 30)]


def test_a_pool_of_which_all_is_held_grows(store: Store) -> None:
    pool, ids = store.pool(4), torch.tensor([1, 2, 3, 4])
    pages = pool.load(0, ids)
    pin = pool.pin(0, pages)
    for other in ([5, 6], [7], [8, 9, 10]):
        pool.load(0, torch.tensor(other))
    assert torch.equal(pool.pages(0)[pages], store.content[0, ids])
    size = len(pool.pages(0))
    pin.release()
    pin.release()
    pool.load(0, torch.tensor([11, 12, 13, 14]))
    assert len(pool.pages(0)) == size


def test_what_is_read_ahead_is_read_once(store: Store) -> None:
    pool, ids = store.pool(10), torch.tensor([3, 4, 7])
    pool.prefetch(1, ids)
    assert torch.equal(pool.blocks(1, ids), store.content[1, ids])
    pool.prefetch(1, ids)
    assert torch.equal(pool.blocks(1, ids), store.content[1, ids])
    assert store.read == [3, 4, 7]


def test_a_read_ahead_that_failed_fails_no_one_who_does_not_want_it(store: Store) -> None:
    pool = store.pool(10)
    pool.load(0, torch.tensor([1, 2]))
    store.fails = True
    pool.prefetch(0, torch.tensor([3]))
    pool.load(0, torch.tensor([1, 2]))
    pool.prefetch(0, torch.tensor([3]))
    with pytest.raises(OSError, match="unplugged"):
        pool.load(0, torch.tensor([2, 3]))
    store.fails = False
    pool.prefetch(0, torch.tensor([3]))
    ids = torch.tensor([1, 3])
    assert torch.equal(pool.blocks(0, ids), store.content[0, ids])


@pytest.mark.parametrize("then", [[1, 2, 3], [5, 6]])
def test_a_failed_read_leaves_the_pool_sound(then: list[int], store: Store) -> None:
    pool = store.pool(4)
    pool.blocks(0, torch.tensor([1, 2]))
    store.fails = True
    with pytest.raises(OSError, match="unplugged"):
        pool.blocks(0, torch.tensor([2, 3]))
    store.fails = False
    assert torch.equal(pool.blocks(0, torch.tensor(then)), store.content[0, then])


def test_no_blocks_are_no_read_of_any(store: Store) -> None:
    assert store.pool(4).blocks(0, torch.arange(0)).shape == (0, 2, 1, 4, 2)
    assert store.read == []
