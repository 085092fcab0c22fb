"""actqkv ls, show, rm and verify through real processes."""

import os
import pty
from pathlib import Path

import pytest
from sandbox import Sandbox

from actqkv_cli.store.locks import read_lock

NAMES = {"handbook.md", "log.txt", "Küste — Café.txt"}


def test_ls(library: Sandbox) -> None:
    listed = library.run("ls", "--json").json
    assert listed["home"] == str(library.home)
    assert [entry["name"] for entry in listed["documents"]] == ["Küste — Café.txt", "handbook.md", "log.txt"]
    for entry in listed["documents"]:
        assert entry["state"] == "complete"
        assert entry["tokens"] > 0
        assert entry["bytes"] == sum(path.stat().st_size for path in (library.home / entry["id"]).iterdir())
    done = library.with_env(LC_ALL="C").run("ls")
    assert (done.code, done.err) == (0, "")
    assert len(done.out.splitlines()) == 3
    assert all(name in done.out for name in NAMES)


@pytest.mark.parametrize("selector", ["log.txt", "log", "LOG", "id"])
def test_show_by_name_or_id_or_a_part(library: Sandbox, selector: str) -> None:
    folder = library.folder("log")
    done = library.run("show", folder.name if selector == "id" else selector, "--json")
    assert done.code == 0
    assert (done.json["id"], done.json["folder"]) == (folder.name, str(folder))
    assert done.json["manifest"]["source"]["name"] == "log.txt"


def test_show_is_readable(library: Sandbox) -> None:
    done = library.run("show", "handbook.md")
    assert (done.code, done.err) == (0, "")
    assert "handbook.md (1 page" in done.out
    assert "2 layers" in done.out
    assert "budget 2048" in done.out


def test_exit_4_no_such_document(library: Sandbox) -> None:
    for args in (["ask", "Who?", "--doc", "atlas"], ["show", "atlas"], ["rm", "atlas", "-y"], ["verify", "atlas"]):
        done = library.run(*args, "--json")
        assert done.code == done.json["error"]["exit_code"] == 4
        assert "'atlas'" in done.err
        assert library.folder("log").name in done.err


def test_verify_says_that_all_is_sound(library: Sandbox) -> None:
    done = library.run("verify")
    assert (done.code, done.err) == (0, "")
    assert sorted(done.out.splitlines()) == sorted(
        f"{entry['id']}: sound" for entry in library.run("ls", "--json").json["documents"]
    )


def test_rm_does_not_remove_unasked(library: Sandbox, tmp_path: Path) -> None:
    box = library.copy(tmp_path)
    done = box.run("rm", "log.txt", "--json")
    assert done.code == done.json["error"]["exit_code"] == 2
    assert "--yes" in done.json["error"]["hint"]
    assert box.folder("log").is_dir()

    assert b"Remove log.txt (log-" in answer(box, b"n\n", "log.txt")
    assert box.folder("log").is_dir()
    shown = answer(box, b"n\ny\n", "handbook.md", "log.txt")
    assert b"kept handbook-" in shown
    assert b"removed log-" in shown
    assert box.folder("handbook").is_dir()
    assert not list(box.home.glob("log-*"))

    done = box.run("rm", "handbook.md", box.folder("handbook").name, "--yes", "--json")
    assert [entry["name"] for entry in done.json["removed"]] == ["handbook.md"]
    assert [path.name for path in box.home.iterdir() if not path.name.startswith(".")] == [box.folder("kuste").name]


def answer(box: Sandbox, keys: bytes, *names: str) -> bytes:
    """What `actqkv rm` shows on a terminal on which `keys` are typed."""
    leader, follower = pty.openpty()
    process = box.start("rm", *names, stdin=follower, stderr=follower)
    os.close(follower)
    shown = b""
    for key in keys.splitlines(keepends=True):
        while not shown.endswith(b"[y/N] "):
            shown += os.read(leader, 1024)
        os.write(leader, key)
        shown += b"\n"
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "")
    return shown + os.read(leader, 65536)


def test_exit_1_what_is_being_read_is_not_removed(library: Sandbox, tmp_path: Path) -> None:
    box = library.copy(tmp_path)
    folder = box.folder("log")
    before = sorted(path.name for path in folder.iterdir())
    with read_lock(box.home, folder.name):
        done = box.run("rm", "log.txt", "--yes", "--json")
        assert done.code == done.json["error"]["exit_code"] == 1
        assert "being read" in done.json["error"]["message"]
        assert box.run("show", "log.txt").code == 0
    assert sorted(path.name for path in folder.iterdir()) == before
    assert box.run("rm", "log.txt", "--yes").code == 0
