"""What is measured of the machine, and what follows from it."""

import os
from pathlib import Path

import pytest
import torch

from actqkv_cli.bench import machine
from actqkv_cli.bench.machine import Compute, describe, drop_cached, fill_cached, measure_compute, measure_disk
from actqkv_cli.model.shape import Shape

SHAPE = Shape(
    hidden=32, intermediate=64, layers=2, heads=4, kv_heads=2, head_dim=8, vocabulary=100, window=64, tied=True
)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Little work, and the machine's own page cache left alone."""
    for name, value in {"_MIN_SECONDS": 0.01, "_MAX_ROWS": 256, "_COPY_BYTES": 1 << 20, "_FILE_BYTES": 8 << 20}.items():
        monkeypatch.setattr(machine, name, value)
    monkeypatch.setattr(machine, "_DROP_CACHES", tmp_path / "not" / "permitted")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rates_are_possible(dtype: torch.dtype) -> None:
    rates = measure_compute(SHAPE, dtype, CPU)
    assert 1e6 < rates.product < 1e16
    assert 1e5 < rates.attention < 1e16
    assert 1e7 < rates.memory < 1e14


def test_the_floor_counts_all_arithmetic_at_the_rate_of_products() -> None:
    rates = Compute(product=1000.0, attention=10.0, memory=1.0)
    products, pairs = SHAPE.product_flops(5), SHAPE.attention_flops(15)
    assert rates.floor(SHAPE, 5, 15) == pytest.approx((products + pairs) / 1000)
    assert rates.estimate(SHAPE, 5, 15) == pytest.approx(products / 1000 + pairs / 10)


def test_a_disk_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    place = tmp_path / "library"
    place.mkdir()
    disk = measure_disk(place)
    assert min(disk.write, disk.warm) > 1e5
    assert disk.dropped == ("posix_fadvise" if hasattr(os, "posix_fadvise") else "")
    assert (disk.cold is None) == (disk.dropped == "")
    assert not list(place.iterdir())


def test_where_nothing_can_be_written_the_system_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        measure_disk(tmp_path / "absent")


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="tells what was read from disk")
def test_what_was_dropped_is_read_from_disk_again(tmp_path: Path) -> None:
    def from_disk() -> int:
        return int(Path("/proc/self/io").read_text().partition("\nread_bytes:")[2].split()[0])

    file = tmp_path / "file"
    file.write_bytes(os.urandom(4 << 20))
    assert drop_cached([file]) == "posix_fadvise"
    before = from_disk()
    fill_cached([file])
    cold = from_disk() - before
    fill_cached([file])
    assert from_disk() - before == cold  # the second time nothing was
    if cold:  # none in a file system of memory
        assert cold >= 4 << 20


def test_where_permitted_everything_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switch = tmp_path / "drop_caches"
    monkeypatch.setattr(machine, "_DROP_CACHES", switch)
    switch.touch()
    assert drop_cached([]) == "drop_caches"
    assert switch.read_text() == "1"


def test_without_any_means_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    assert drop_cached([tmp_path]) == ""


def test_a_machine_is_described() -> None:
    told = describe(CPU, "float32")
    assert {"system", "processor", "cores", "threads", "device", "dtype", "python", "versions", "commit"} == set(told)
    assert {"actqkv", "torch", "transformers"} == set(told["versions"])
    assert told["commit"] is None or len(told["commit"].rstrip("+")) == 12
