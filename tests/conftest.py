import logging
import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before a kernel is defined: it is then interpreted


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models gain nothing from more, and equal sums then come out equal."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def quiet_libraries() -> Iterator[None]:
    """Deprecations that transformers and the hub's client log, rather than warn of, fail a test as well."""
    said = _Said(logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    for logger in loggers:
        logger.addHandler(said)
    yield
    for logger in loggers:
        logger.removeHandler(said)
    assert not said.messages


class _Said(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
