import os
from pathlib import Path

import pytest
import store_sample


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test cuts the power, so flushing only costs time; that it is asked for has its own test."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def sample() -> store_sample.Sample:
    return store_sample.make()


@pytest.fixture
def folder(sample: store_sample.Sample, tmp_path: Path) -> Path:
    """The sample, committed."""
    sample.finish(tmp_path)
    return sample.folder(tmp_path)
