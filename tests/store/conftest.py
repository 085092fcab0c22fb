import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for store_sample, which a subprocess imports too

import store_sample


@pytest.fixture
def sample() -> store_sample.Sample:
    return store_sample.make()


@pytest.fixture
def folder(sample: store_sample.Sample, tmp_path: Path) -> Path:
    """The sample, committed."""
    sample.finish(tmp_path)
    return sample.folder(tmp_path)
