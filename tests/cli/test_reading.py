"""What a user sets is how the document is read."""

import pytest

from actqkv_cli.commands.ingest import reading_of
from actqkv_cli.config import load_settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("score", "cosine"),
        ("representative", "anchor"),
        ("positions", "compact"),
        ("prefill", "full"),
        ("budget", 1024),
        ("baselines", True),
    ],
)
def test_every_setting_reaches_the_reading(name: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert getattr(reading_of(load_settings()), name) != value
    monkeypatch.setenv(f"ACTQKV_{name.upper()}", str(value))
    assert getattr(reading_of(load_settings()), name) == value
