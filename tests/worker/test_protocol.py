"""Frames survive the socket whole, whatever it does to them, and a fingerprint changes with what it stands for."""

import importlib.util
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actqkv_cli.worker import protocol
from actqkv_cli.worker.protocol import Connection, difference, fingerprint

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="there is no worker without Unix sockets")


@pytest.fixture
def pair() -> Iterator[tuple[Connection, socket.socket]]:
    """A connection, and the bare socket at its other end."""
    ours, theirs = socket.socketpair()
    connection = Connection(ours)
    yield connection, theirs
    connection.close()
    theirs.close()


def test_any_text_arrives_as_it_was_sent(pair: tuple[Connection, socket.socket]) -> None:
    connection, theirs = pair
    frame = {"argv": ["Möwe 🐦", "a\nb", "\udcff undecodable", "x" * 50_000]}
    assert Connection(theirs).send(run=frame)
    assert connection.receive() == {"run": frame}


def test_frames_may_come_in_pieces_or_together(pair: tuple[Connection, socket.socket]) -> None:
    connection, theirs = pair
    connection.set_timeouts(receive=0.05)
    theirs.sendall(b'{"out": "on')
    with pytest.raises(TimeoutError):
        connection.receive()
    theirs.sendall(b'e"}\n{"out": "two"}\n{"ex')
    assert connection.receive() == {"out": "one"}
    assert connection.receive() == {"out": "two"}
    with pytest.raises(TimeoutError):
        connection.receive()
    theirs.sendall(b'it": 0}\n')
    theirs.close()
    assert connection.receive() == {"exit": 0}  # what was sent before the end is not lost
    assert connection.receive() is None


@pytest.mark.parametrize("nonsense", [b"GET / HTTP/1.1\r\n", b"\xff\xfe\n", b"[1, 2]\n", b"{\n", b'{"cut": '])
def test_nonsense_is_the_end(pair: tuple[Connection, socket.socket], nonsense: bytes) -> None:
    connection, theirs = pair
    theirs.sendall(nonsense)
    theirs.close()
    assert connection.receive() is None


def test_a_frame_without_end_is_not_kept_for_ever(
    pair: tuple[Connection, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "_MAX_FRAME_BYTES", 1000)
    connection, theirs = pair
    for _ in range(3):
        theirs.sendall(b"x" * 1000)
    assert connection.receive() is None


def test_an_end_that_has_gone_or_does_not_read_is_told_of_and_not_raised(
    pair: tuple[Connection, socket.socket],
) -> None:
    connection, theirs = pair
    connection.set_timeouts(send=0.1)
    began = time.monotonic()
    assert not connection.send(out="x" * 10_000_000)
    assert time.monotonic() - began < 5
    assert not connection.send(out="more")  # a frame was cut: none can follow
    theirs.close()
    assert not connection.send(out="more")


def test_a_peer_is_known(pair: tuple[Connection, socket.socket]) -> None:
    connection, _ = pair
    assert connection.is_of_this_user()
    if sys.platform == "linux":
        assert connection.peer() == (os.getpid(), os.getuid())


def test_a_fingerprint_is_of_what_libraries_read_when_they_start(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint()
    assert json.loads(json.dumps(before)) == before == fingerprint()
    assert difference(before, fingerprint()) == ""
    monkeypatch.setenv("ACTQKV_BUDGET", "1024")  # is read for every command
    monkeypatch.setenv("EDITOR", "ed")
    assert difference(before, fingerprint()) == ""
    for name in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "CUDA_VISIBLE_DEVICES", "HF_HOME", "PYTHONPATH", "HOME"):
        with monkeypatch.context() as changed:
            changed.setenv(name, "something else")
            assert difference(before, fingerprint()) == name
            assert difference(fingerprint(), before) == name


def test_a_fingerprint_changes_with_our_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(Path(protocol.__file__).parents[1], tmp_path / "actqkv_cli")
    found = [str(tmp_path / "actqkv_cli")]

    class Spec:
        submodule_search_locations = found

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: Spec if name == "actqkv_cli" else None)
    before = fingerprint()
    assert fingerprint() == before
    module = tmp_path / "actqkv_cli" / "worker" / "client.py"
    for change in (module.touch, lambda: module.write_text(""), lambda: (module.parent / "new.py").touch()):
        change()
        after = fingerprint()
        assert difference(before, after) == "code"
        before = after
    (tmp_path / "actqkv_cli" / "notes.txt").write_text("This is no code.")
    assert fingerprint() == before
