"""Tokens written into pages of a pool, and the means made on the way: what was written is there, the rest untouched."""

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, ROUNDING, assert_near, normal
from torch import Tensor

from actqkv_kernels import write_pages
from actqkv_kernels.backend import Backend, BackendUnavailable

PAGES = 7
SIZES = [(1, 16, 64), (2, 32, 128), (8, 24, 80), (3, 64, 96), (1, 128, 256)]  # Hkv, b, d
each_backend = pytest.mark.parametrize("backend", ["torch", "triton"])
each_size = pytest.mark.parametrize(("heads", "size", "dim"), SIZES)


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, float("nan"), dtype=dtype, device=DEVICE)


def slots_of(*slots: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(slots, dtype=dtype, device=DEVICE)


def check(key: Tensor, value: Tensor, pages: Tensor, slots: Tensor, offset: int, before: Tensor) -> None:
    """Token by token, what the pages hold now; every other number has the bits that it had."""
    expected = before.clone()
    for token in range(key.shape[1]):
        page, row = divmod(offset + token, pages.shape[-2])
        for kind, states in enumerate((key, value)):
            expected[slots[page], kind, :, row] = states[:, token]
    assert torch.equal(pages.view(torch.uint8), expected.view(torch.uint8))


@each_backend
@each_size
@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_are_where_they_belong(heads: int, size: int, dim: int, dtype: torch.dtype, backend: Backend) -> None:
    for window, offset in ((1, 0), (1, size - 1), (3, size - 2), (size, 0), (2 * size + 5, 0), (2 * size + 1, 7)):
        pages = poisoned(PAGES, 2, heads, size, dim, dtype=dtype)
        before = pages.clone()
        key, value = normal(2, heads, window, dim, dtype=dtype)
        slots = slots_of(5, 0, 6, 3)
        assert write_pages(key, value, pages, slots, offset, backend=backend) is None
        check(key, value, pages, slots, offset, before)


@each_backend
@each_size
@pytest.mark.parametrize("dtype", DTYPES)
def test_means_are_of_the_tokens_written(heads: int, size: int, dim: int, dtype: torch.dtype, backend: Backend) -> None:
    for window in (1, size - 1, size, 2 * size, 2 * size + 5):
        pages = poisoned(PAGES, 2, heads, size, dim, dtype=dtype)
        means, before = poisoned(PAGES, heads, dim, dtype=dtype), pages.clone()
        key, value = normal(2, heads, window, dim, dtype=dtype)
        slots = slots_of(5, 0, 6, 3, dtype=torch.int64)
        write_pages(key, value, pages, slots, 0, means, backend=backend)
        check(key, value, pages, slots, 0, before)
        written = slots[: -(-window // size)]
        expected = [part.double().mean(dim=1) for part in key.split(size, dim=1)]
        assert_near(means[written], torch.stack(expected), ROUNDING[dtype])
        assert means[[slot for slot in range(PAGES) if slot not in written.tolist()]].isnan().all()


@each_backend
def test_a_token_at_a_time_is_the_same_as_all_at_once(backend: Backend) -> None:
    key, value = normal(2, 2, 40, 64, dtype=torch.bfloat16)
    slots, place = slots_of(2, 0, 3), torch.zeros((), dtype=torch.int32, device=DEVICE)
    at_once, one_by_one = poisoned(2, 4, 2, 2, 16, 64, dtype=torch.bfloat16)
    write_pages(key, value, at_once, slots, backend=backend)
    for token in range(40):
        here = slice(token, token + 1)
        write_pages(key[:, here], value[:, here], one_by_one, slots, place, backend=backend)
        place += 1
    assert torch.equal(at_once.view(torch.int16), one_by_one.view(torch.int16))


@each_backend
def test_views_are_read_and_written_in_place(backend: Backend) -> None:
    fused = normal(21, 8, 96)  # tokens of queries, keys and values, as a projection leaves them
    key, value = fused[1:, 4:6].transpose(0, 1), fused[1:, 6:].transpose(0, 1)
    pool, means = poisoned(PAGES, 3, 2, 2, 16, 96), poisoned(PAGES, 3, 2, 96)
    before = pool.clone()
    slots = slots_of(5, 0, 0, 0, 1, 0)[::2]  # every other one
    write_pages(key, value, pool[:, 1], slots, 0, means[:, 1], backend=backend)
    before[:, 1] = torch.where(pool[:, 1].isnan(), before[:, 1], pool[:, 1])
    assert torch.equal(pool.view(torch.uint8), before.view(torch.uint8))  # other layers are as they were
    torch.testing.assert_close(pool[5, 1, 0], key[:, :16])
    torch.testing.assert_close(pool[0, 1, 1, :, :4], value[:, 16:])
    assert_near(means[0, 1], key[:, 16:].mean(dim=1), 1e-6)
    assert means[:, [0, 2]].isnan().all()


@each_backend
def test_no_tokens_change_nothing(backend: Backend) -> None:
    pages, means = poisoned(2, 2, 1, 16, 64), poisoned(2, 1, 64)
    write_pages(pages[0, 0, :, :0], pages[0, 0, :, :0], pages, slots_of(), 0, means, backend=backend)
    assert pages.isnan().all()
    assert means.isnan().all()


def test_pages_with_gaps_are_not_for_the_kernel() -> None:
    pages = poisoned(2, 2, 1, 64, 16).mT
    tokens = normal(1, 20, 64)
    with pytest.raises(BackendUnavailable, match="a page is not contiguous"):
        write_pages(tokens, tokens, pages, slots_of(1, 0), backend="triton")
    write_pages(tokens, tokens, pages, slots_of(1, 0), backend="torch")
    torch.testing.assert_close(pages[1, 0], tokens[:, :16])


def test_what_does_not_fit_is_refused() -> None:
    pages, means, slots = poisoned(4, 2, 2, 16, 64), poisoned(4, 2, 64), slots_of(0, 1)
    tokens = normal(2, 20, 64)
    moving = torch.zeros((), dtype=torch.int32, device=DEVICE)
    for message, *wrong in (
        ("pages", tokens, tokens, pages[:, :1], slots),
        ("do not fit pages", tokens[:1], tokens[:1], pages, slots),
        ("do not fit pages", tokens, tokens[:, :19], pages, slots),
        ("do not fit 2 pages", tokens, tokens, pages, slots, 13),
        ("do not fit 2 pages", tokens, tokens, pages, slots, -1),
        ("slots", tokens, tokens, pages, slots.float()),
        ("slots", tokens, tokens, pages, slots[None]),
        ("offset", tokens, tokens, pages, slots, moving[None]),
        ("offset", tokens, tokens, pages, slots, moving.float()),
        ("offset must be 0", tokens, tokens, pages, slots, 1, means),
        ("offset must be 0", tokens, tokens, pages, slots, moving, means),
        ("representatives", tokens, tokens, pages, slots, 0, means[:3]),
        ("float16", tokens, tokens, pages.half(), slots),
        ("float16", tokens, tokens, pages, slots, 0, means.half()),
    ):
        with pytest.raises(ValueError, match=message):
            write_pages(*wrong)
    assert pages.isnan().all()
