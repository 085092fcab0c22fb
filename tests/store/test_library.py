"""Which document is meant, and who may touch it."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import store_sample

from actqkv_cli.errors import ActqkvError, NoSuchDocument, StoreDamaged, UsageError
from actqkv_cli.store.library import document_id, find, list_entries, remove, scratch, sweep
from actqkv_cli.store.locks import read_lock, write_lock
from actqkv_cli.store.writer import DocumentWriter

ROOT = Path(__file__).parents[2]


def add(home: Path, document: str, name: str, age: int = 0, finish: bool = True) -> Path:
    sample = store_sample.make(document=document)
    source = sample.draft.source.model_copy(update={"name": name})
    sample.draft = sample.draft.model_copy(update={"source": source})
    folder = sample.folder(home)
    if finish:
        sample.finish(home)
        os.utime(folder / "manifest.json", (1e9 - age, 1e9 - age))
    else:
        with DocumentWriter.open(folder, sample.draft) as writer:
            writer.write_segment(sample.blocks[:, :4], sample.representatives[:, :4])
        os.utime(folder / "ingest.json", (2e9, 2e9))
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    add(tmp_path, "moby-dick-11111111", "Moby Dick.pdf", age=3)
    add(tmp_path, "moby-dick-22222222", "Moby Dick (1851).pdf", age=2)
    add(tmp_path, "war-and-peace-33333333", "War and Peace.txt", age=1)
    add(tmp_path, "unfinished-44444444", "Ulysses.txt", finish=False)
    return tmp_path


def test_the_list(home: Path) -> None:
    (home / ".trash-x").mkdir()
    (home / "my notes").mkdir()
    (home / "file.txt").write_text("x")
    (home / "my notes" / "text.txt").write_text("x")
    entries = list_entries(home)
    assert [(entry.id[:4], entry.state) for entry in entries] == [
        ("unfi", "unfinished"), ("war-", "complete"), ("moby", "complete"), ("moby", "complete"),
    ]  # fmt: skip
    assert entries[0].progress is not None
    assert entries[0].progress.tokens_done == 16
    assert entries[0].manifest is None
    assert entries[1].manifest is not None
    assert entries[1].size == sum(path.stat().st_size for path in entries[1].folder.iterdir())
    assert entries[1].modified == 1e9 - 1
    assert list_entries(home / "nowhere") == []


def test_the_library_may_not_be_a_folder(home: Path) -> None:
    with pytest.raises(ActqkvError, match="cannot read the library"):
        list_entries(home / "moby-dick-11111111" / "manifest.json")


def test_damaged_documents_are_listed(home: Path) -> None:
    (home / "moby-dick-11111111" / "manifest.json").write_text("{")
    (home / "moby-dick-22222222" / "manifest.json").unlink()
    (home / "war-and-peace-33333333").rename(home / "War & Peace")
    (home / "unfinished-44444444" / "ingest.json").write_text("")
    errors = {entry.id: entry.failure.message for entry in list_entries(home) if entry.failure}
    assert len(errors) == 4
    assert "JSON" in errors["moby-dick-11111111"]
    assert "missing" in errors["moby-dick-22222222"]
    assert "renamed or copied" in errors["War & Peace"]
    assert "JSON" in errors["unfinished-44444444"]
    for document, error in errors.items():
        with pytest.raises(StoreDamaged) as caught:
            find(home, document)
        assert caught.value.message == error
        assert document in caught.value.hint


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (None, "war-and-peace-33333333"),
        ("moby-dick-11111111", "moby-dick-11111111"),
        ("Moby Dick.pdf", "moby-dick-11111111"),
        ("Moby Dick (1851).pdf", "moby-dick-22222222"),
        ("moby-dick-2", "moby-dick-22222222"),
        ("MOBY DICK (", "moby-dick-22222222"),
        ("war", "war-and-peace-33333333"),
        ("PEACE", "war-and-peace-33333333"),
        ("1851", "moby-dick-22222222"),
    ],
)
def test_finding(home: Path, selector: str | None, expected: str) -> None:
    assert find(home, selector).id == expected


@pytest.mark.parametrize("selector", ["moby", "Moby Dick", "dick", "M"])
def test_several_fit(home: Path, selector: str) -> None:
    with pytest.raises(UsageError, match=r"moby-dick-22222222, moby-dick-11111111|moby-dick-11111111, moby"):
        find(home, selector)


def test_none_fits(home: Path) -> None:
    with pytest.raises(NoSuchDocument, match="'hamlet'") as caught:
        find(home, "hamlet")
    assert "war-and-peace-33333333" in caught.value.hint
    assert "unfinished-44444444 (unfinished)" in caught.value.hint
    for nowhere in (home / "nowhere", home / "moby-dick-11111111"):
        for selector in (None, "x"):
            with pytest.raises(NoSuchDocument) as caught:
                find(nowhere, selector)
            assert "actqkv ingest FILE" in caught.value.hint
    with pytest.raises(UsageError):
        find(home, "")


def test_an_unfinished_one_says_how_far_it_got(home: Path) -> None:
    with pytest.raises(NoSuchDocument, match="16 of 38 tokens") as caught:
        find(home, "ulysses")
    assert "resumes" in caught.value.hint
    for document in ("moby-dick-11111111", "moby-dick-22222222", "war-and-peace-33333333"):
        shutil.rmtree(home / document)
    with pytest.raises(NoSuchDocument, match="not finished"):
        find(home, None)


def test_a_damaged_latest_document_is_not_passed_over(home: Path) -> None:
    path = home / "war-and-peace-33333333" / "manifest.json"
    path.write_text("{}")
    os.utime(path, (1e9, 1e9))
    with pytest.raises(StoreDamaged):
        find(home, None)


def test_document_ids() -> None:
    sha, parts = "0" * 64, {"window": 256, "model": {"name": "tiny"}}
    first = document_id("Der Leuchtturm — 2. Auflage (Ü).pdf", sha, parts)
    assert first.rpartition("-")[0] == "der-leuchtturm-2-auflage-u"
    assert first == document_id("Der Leuchtturm — 2. Auflage (Ü).pdf", sha, dict(reversed(parts.items())))
    others = {
        document_id("Der Leuchtturm — 2. Auflage (Ü).txt", sha, parts),
        document_id("Der Leuchtturm — 2. Auflage (Ü).pdf", "1" * 64, parts),
        document_id("Der Leuchtturm — 2. Auflage (Ü).pdf", sha, {**parts, "window": 512}),
        first,
    }
    assert len(others) == 4
    assert document_id("日本語.pdf", sha, {}).startswith("document-")
    assert document_id("", sha, {}).startswith("document-")
    long = document_id("x" * 39 + " y" * 50, sha, {})
    assert len(long) == 39 + 9
    for name in ("日本語.pdf", "..", "a/../b", "-", "x" * 300, "\udcff"):
        store_sample.make(document=document_id(name, sha, {}))
    with pytest.raises(TypeError):
        document_id("x", sha, {"path": Path("x")})


def test_removal(home: Path) -> None:
    entry = find(home, "war")
    remove(home, entry)
    assert not entry.folder.exists()
    assert {path.name for path in home.iterdir() if not path.name.startswith("moby")} == {
        ".locks",
        "unfinished-44444444",
    }
    remove(home, entry)  # gone already: fine
    for entry in list_entries(home):
        remove(home, entry)
    assert list_entries(home) == []


def test_removal_of_the_damaged_and_the_linked(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "war-and-peace-33333333"
    (home / "war-and-peace-33333333").rename(elsewhere)
    (home / "war-and-peace-33333333").symlink_to(elsewhere)
    (home / "moby-dick-11111111").rename(home / "Odd näme\n")
    assert len(list_entries(home)) == 4
    for entry in list_entries(home):
        remove(home, entry)
    assert list_entries(home) == []
    assert (elsewhere / "manifest.json").exists()


def test_a_killed_removal_leaves_no_document(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = find(home, "war")

    def killed(folder: Path) -> None:
        (folder / "kv-00000.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove(home, entry)
    assert len(list_entries(home)) == 3
    with pytest.raises(NoSuchDocument):
        find(home, "war")
    add(home, "war-and-peace-33333333", "War and Peace.txt")
    remove(home, find(home, "war"))
    assert not list(home.glob(".trash*"))


def test_removal_keeps_to_the_library(home: Path) -> None:
    entry = find(home, "war")
    with pytest.raises(ValueError, match="not a document"):
        remove(home / "elsewhere", entry)


HOLDER = """
import sys, time
from pathlib import Path
from actqkv_cli.store import library, locks
assert "torch" not in sys.modules, "listing documents must not wait for torch"
if sys.argv[1] == "scratch":
    held = library.scratch(Path(sys.argv[2]))
else:
    held = getattr(locks, sys.argv[1])(Path(sys.argv[2]), "a-book")
with held:
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[object]:
    started: list[subprocess.Popen[str]] = []

    def start(kind: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, kind, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills the holder")
def test_locks_between_processes(tmp_path: Path, holder) -> None:  # type: ignore[no-untyped-def]
    writer = holder("write_lock")
    for kind in (read_lock, write_lock):
        started = time.monotonic()
        with pytest.raises(ActqkvError, match="document a-book is being") as caught, kind(tmp_path, "a-book"):
            pass
        assert time.monotonic() - started < 3
        assert caught.value.exit_code == 1
        assert caught.value.hint
    with write_lock(tmp_path, "another-book"):
        pass
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    with write_lock(tmp_path, "a-book"):
        pass

    reader = holder("read_lock")
    with read_lock(tmp_path, "a-book"), read_lock(tmp_path, "a-book"):
        pass
    with pytest.raises(ActqkvError, match="being read"), write_lock(tmp_path, "a-book"):
        pass
    reader.send_signal(signal.SIGKILL)
    reader.wait()
    with write_lock(tmp_path, "a-book"):
        pass


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills the holder")
def test_scratch_folders_go(tmp_path: Path, holder) -> None:  # type: ignore[no-untyped-def]
    """At their end, after an error, and those of killed runs as soon as none is in use."""
    home = tmp_path / "not yet there"

    def fail(error: type[BaseException]) -> None:
        with scratch(home) as folder:
            assert folder.parent == home
            assert list_entries(home) == []
            (folder / "kv-00000.safetensors").write_text("x")
            raise error

    for error in (KeyError, KeyboardInterrupt):
        with pytest.raises(error):
            fail(error)
        assert [path.name for path in home.iterdir()] == [".locks"]
    home = tmp_path
    first, second = holder("scratch"), holder("scratch")
    killed, used = sorted(home.glob(".scratch-*"), key=lambda path: path.stat().st_ctime_ns)
    first.send_signal(signal.SIGKILL)
    first.wait()
    sweep(home)  # one is in use still
    assert (killed.exists(), used.exists()) == (True, True)
    second.send_signal(signal.SIGKILL)
    second.wait()
    with scratch(home) as folder:
        assert list(home.glob(".scratch-*")) == [folder]
    sweep(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ActqkvError), scratch(tmp_path / "file"):
        pass


def test_locks_within_a_process(tmp_path: Path) -> None:
    with write_lock(tmp_path, "a-book"):
        failures = []

        def try_both() -> None:
            for kind in (read_lock, write_lock):
                try:
                    with kind(tmp_path, "a-book"):
                        pass
                except ActqkvError as error:
                    failures.append(error)

        try_both()
        thread = threading.Thread(target=try_both)
        thread.start()
        thread.join()
        assert len(failures) == 4
    with pytest.raises(KeyError), write_lock(tmp_path, "a-book"):  # an error inside is not the lock's
        raise KeyError
    with write_lock(tmp_path, "a-book"):
        pass


def test_a_document_in_use_is_not_removed(home: Path) -> None:
    entry = find(home, "war")
    with read_lock(home, entry.id), pytest.raises(ActqkvError, match="being read"):
        remove(home, entry)
    assert find(home, "war").id == entry.id


def test_a_library_one_may_only_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with read_lock(home, "war-and-peace-33333333"):
        assert not (home / ".locks").exists()


def test_a_place_without_locks(tmp_path: Path) -> None:
    (tmp_path / ".locks").write_text("in the way")
    for kind in (read_lock, write_lock):
        with pytest.raises(ActqkvError, match="cannot lock"), kind(tmp_path, "a-book"):
            pass
