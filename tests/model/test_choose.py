"""Which model is taken where none was named."""

import os
from types import SimpleNamespace

import pytest

from actqkv_cli.errors import UsageError
from actqkv_cli.model import choose as module
from actqkv_cli.model.catalogue import CATALOGUE
from actqkv_cli.model.choose import choose, free_memory
from actqkv_cli.model.load import choose_device


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    memory = SimpleNamespace(bytes=0)
    monkeypatch.setattr(module, "free_memory", lambda _device: memory.bytes)
    return memory


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_largest_that_fits(free: SimpleNamespace, dtype: str) -> None:
    for number, model in enumerate(CATALOGUE):
        free.bytes = model.memory_bytes(dtype)
        exactly = choose("cpu", dtype)
        assert (exactly.model, exactly.needed, exactly.crowded) == (model, free.bytes, False)
        assert exactly.reason.startswith("the largest that fits in ")
        free.bytes -= 1
        assert choose("cpu", dtype).model == CATALOGUE[max(0, number - 1)]


def test_it_takes_its_weights_and_some_room() -> None:
    small, _, large = CATALOGUE
    assert 1.2e9 < small.memory_bytes("bfloat16") < 1.4e9
    assert 4.5e9 < large.memory_bytes("bfloat16") < 5e9
    assert 8e9 < large.memory_bytes("float32") < 9e9


def test_where_none_fits_the_smallest_is_taken_and_that_is_said(free: SimpleNamespace) -> None:
    free.bytes = 700_000_000
    choice = choose("cpu", "bfloat16")
    assert choice.model == CATALOGUE[0]
    assert choice.reason == "the smallest, though it may not fit in 0.7 GB of free memory"


def test_an_idle_workers_memory_counts_as_free(free: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = CATALOGUE[-1].memory_bytes("float32")
    free.bytes = needed - 2_000_000_000
    assert choose("cpu", "float32").model != CATALOGUE[-1]
    status = SimpleNamespace(rss=3_000_000_000, shared=500_000_000)
    monkeypatch.setattr("psutil.Process", lambda _pid: SimpleNamespace(memory_info=lambda: status))
    choice = choose("cpu", "float32", worker=1)
    assert (choice.model, choice.crowded) == (CATALOGUE[-1], True)
    free.bytes = needed
    assert not choose("cpu", "float32", worker=1).crowded


def test_a_worker_that_has_just_gone_holds_nothing(free: SimpleNamespace) -> None:
    free.bytes = 2_000_000_000
    assert choose("cpu", "float32", worker=2**22 + 1).held == 0
    assert 0 < choose("cpu", "float32", worker=os.getpid()).held < 1 << 34


def test_free_memory_is_that_of_this_machine() -> None:
    assert 1 << 20 < free_memory(choose_device("cpu")) < 1 << 50


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown device"):
        choose("tpu", "auto")
