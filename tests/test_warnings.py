"""What a library warns of is for programmers; what we warn of is for the user."""

import os
import warnings

import pytest

from actqkv_cli.invocation import Invocation, start
from actqkv_cli.runtime import Runtime
from actqkv_kernels.backend import SlowerPath

VERSION = Invocation(["--version"], 0.0, lambda keep_alive: None, Runtime, lambda: None)


def test_only_our_own_warnings_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert start(VERSION) == 0
        warnings.warn("use the new name", FutureWarning, stacklevel=1)
        warnings.warn("torch does it", SlowerPath, stacklevel=1)
    assert capsys.readouterr().err == "warning: torch does it\n"


def test_a_command_leaves_the_environment_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """A worker belongs to the environment that it was started in: another one would take its place."""
    before = dict(os.environ)
    assert start(VERSION) == 0
    assert dict(os.environ) == before
