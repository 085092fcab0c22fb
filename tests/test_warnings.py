"""What a library warns of is for programmers; what we warn of is for the user."""

import warnings

import pytest

from actqkv_cli.main import Call, start
from actqkv_kernels.backend import SlowerPath


def test_only_our_own_warnings_reach_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert start(Call(["--version"], 0.0, lambda argv, keep_alive: None)) == 0
        warnings.warn("use the new name", FutureWarning, stacklevel=1)
        warnings.warn("torch does it", SlowerPath, stacklevel=1)
    assert capsys.readouterr().err == "warning: torch does it\n"
