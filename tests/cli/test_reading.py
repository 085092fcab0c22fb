"""What a user sets is how the document is read."""

import pytest

from actqkv_cli.commands.ingest import _reading
from actqkv_cli.config import load_settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("score", "cosine"),
        ("representative", "anchor"),
        ("positions", "compact"),
        ("prefill", "full"),
        ("budget", 1024),
    ],
)
def test_every_setting_reaches_the_reading(name: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert getattr(_reading(load_settings()), name) != value
    monkeypatch.setenv(f"ACTQKV_{name.upper()}", str(value))
    assert getattr(_reading(load_settings()), name) == value
