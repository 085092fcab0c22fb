"""A killed or failing ingest ends, once repeated, in the very bytes of one that was never disturbed."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import store_sample
import torch

from actqkv_cli.errors import ActqkvError, DiskFull, NoSuchDocument
from actqkv_cli.store.manifest import RetrievalHead, Unfinished, load_manifest, load_unfinished
from actqkv_cli.store.reader import DocumentReader
from actqkv_cli.store.writer import DocumentWriter

STEPS = 85  # more than the sample's ingest takes; the tests check that


class Killed(BaseException):
    """The process ends here."""


class Faults:
    """Counts the steps in which the disk changes, and fails the chosen one.

    `lasting`: whatever is tried after it fails too, as in a process that is no more.
    """

    def __init__(self, patch: pytest.MonkeyPatch, at: int, error: BaseException, lasting: bool) -> None:
        self.at, self.error, self.lasting, self.count = at, error, lasting, 0
        write = os.write

        def torn(fd: int, data: memoryview) -> int:
            try:
                self.step()
            except BaseException:
                write(fd, data[: len(data) // 2])
                raise
            return write(fd, data)

        patch.setattr(os, "write", torn)
        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "mkdir"), (Path, "unlink")):
            patch.setattr(owner, name, self.guarded(getattr(owner, name)))

    def guarded(self, call: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **options: object) -> object:
            self.step()
            return call(*args, **options)

        return run

    def step(self) -> None:
        self.count += 1
        if self.count == self.at or (self.lasting and self.count > self.at):
            raise self.error


def finals(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in store_sample.contents(folder).items() if name != "ingest.json"}


@pytest.fixture
def expected(sample: store_sample.Sample, tmp_path: Path) -> dict[str, bytes]:
    sample.finish(tmp_path / "undisturbed")
    return store_sample.contents(sample.folder(tmp_path / "undisturbed"))


@pytest.mark.parametrize("lasting", [True, False], ids=["killed", "interrupted"])
def test_killed_at_any_step(
    sample: store_sample.Sample, expected: dict[str, bytes], tmp_path: Path, lasting: bool
) -> None:
    committed = resumed = 0
    for at in range(1, STEPS):
        home = tmp_path / str(at)
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, at, Killed(), lasting)
            try:
                sample.finish(home)
            except Killed:
                pass
            else:
                assert faults.count < at, "a step failed and no one noticed"
                break
        folder = sample.folder(home)
        assert not lasting or faults.count >= at
        if not lasting and folder.exists():
            assert not list(folder.glob("*.tmp"))
        if (folder / "manifest.json").exists():
            committed += 1
            assert sample.everything_equal(folder)
            with pytest.raises(ActqkvError, match="already"):
                DocumentWriter.open(folder, sample.draft)
        else:
            if folder.exists():
                with pytest.raises(ActqkvError):
                    DocumentReader(folder)
            with DocumentWriter.open(folder, sample.draft) as writer:
                resumed += len(writer.segments) > 0
                assert writer.warnings == []
            sample.finish(home)
        assert store_sample.contents(folder) == expected
    else:
        pytest.fail("STEPS is too small")
    assert committed >= 2
    assert resumed > 10


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_failing_disk_at_any_step(
    sample: store_sample.Sample, expected: dict[str, bytes], tmp_path: Path, code: int
) -> None:
    for at in range(1, STEPS):
        home = tmp_path / str(at)
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, at, OSError(code, os.strerror(code)), lasting=False)
            error = store_sample.outcome(partial(sample.finish, home))
        if error is None:
            assert faults.count < at, "a step failed and no one noticed"
            break
        assert error.exit_code == (1 if code == errno.EIO else 8)
        assert code == errno.EIO or "resumes" in error.hint
        folder = sample.folder(home)
        if folder.exists():
            names = store_sample.contents(folder)
            assert not [name for name in names if name.endswith(".tmp")]
            assert all(expected[name] == data for name, data in finals(folder).items())
        if not (folder / "manifest.json").exists():
            sample.finish(home)
        else:
            with pytest.raises(ActqkvError, match="already"):
                DocumentWriter.open(folder, sample.draft)
        assert store_sample.contents(folder) == expected
    else:
        pytest.fail("STEPS is too small")


def test_every_file_is_flushed_before_and_its_folder_after_the_rename(
    sample: store_sample.Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    replace, inodes = Path.replace, {}

    def flush(fd: int) -> None:
        events.append(f"flush {os.fstat(fd).st_ino}")

    def rename(path: Path, target: Path) -> Path:
        events.append(f"rename {path.stat().st_ino}")
        inodes[path.stat().st_ino] = target.name
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "replace", rename)
    sample.finish(tmp_path)
    folder = sample.folder(tmp_path).stat().st_ino
    renames = [place for place, event in enumerate(events) if event.startswith("rename")]
    assert len(renames) == 4 + 3 + 5  # ingest.json at the start and after each segment, segments, the rest
    for place in renames:
        assert events[place - 1] == events[place].replace("rename", "flush")
        assert events[place + 1] == f"flush {folder}"
    assert [inodes[int(events[place].split()[1])] for place in renames][-1] == "manifest.json"


def test_a_failed_call_may_be_repeated(sample: store_sample.Sample, expected: dict[str, bytes], tmp_path: Path) -> None:
    with DocumentWriter.open(sample.folder(tmp_path), sample.draft) as writer:
        for number in range(3):
            part = slice(number * 4, number * 4 + sample.draft.blocks_of(number))
            with pytest.MonkeyPatch.context() as patch:
                Faults(patch, 2, OSError(errno.ENOSPC, ""), lasting=False)
                with pytest.raises(DiskFull):
                    writer.write_segment(sample.blocks[:, part], sample.representatives[:, part])
            writer.write_segment(sample.blocks[:, part], sample.representatives[:, part])
        writer.commit(sample.text, sample.tensors)
    assert store_sample.contents(sample.folder(tmp_path)) == expected


def test_over_the_limit(sample: store_sample.Sample, expected: dict[str, bytes], tmp_path: Path) -> None:
    total = sum(map(len, expected.values()))
    home = tmp_path / "limited"
    reached = set()
    for limit in range(0, total + 20_000, 1500):
        error = store_sample.outcome(partial(sample.finish, home, disk_limit=limit))
        if error is None:
            break
        assert error.exit_code == 8
        assert f"{limit:,}" in error.message
        assert "resumes" in error.hint
        folder = sample.folder(home)
        assert not list(folder.glob("*.tmp"))
        assert sum(map(len, store_sample.contents(folder).values())) <= max(limit, 4000)
        reached.add(len(load_unfinished(folder).segments))
    assert reached == {0, 1, 2, 3}
    assert store_sample.contents(sample.folder(home)) == expected


def test_the_limit_counts_the_other_documents(sample: store_sample.Sample, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "kv-00000.safetensors").write_bytes(bytes(100_000))
    with pytest.raises(DiskFull):
        sample.finish(tmp_path, disk_limit=100_000)
    sample.finish(tmp_path, disk_limit=200_000)


def begin(sample: store_sample.Sample, home: Path, segments: int = 2) -> Path:
    with DocumentWriter.open(sample.folder(home), sample.draft) as writer:
        for number in range(segments):
            part = slice(number * 4, number * 4 + sample.draft.blocks_of(number))
            writer.write_segment(sample.blocks[:, part], sample.representatives[:, part])
    return sample.folder(home)


def test_resuming_gives_the_data_back(sample: store_sample.Sample, tmp_path: Path) -> None:
    folder = begin(sample, tmp_path)
    with DocumentWriter.open(folder, sample.draft) as writer:
        assert [segment.blocks for segment in writer.segments] == [4, 4]
        blocks, representatives = writer.load_segment(1)
        assert torch.equal(blocks, sample.blocks[:, 4:8])
        assert torch.equal(representatives, sample.representatives[:, 4:8])
        layer = torch.cat(list(writer.read_layer(2)))
        assert torch.equal(layer, sample.blocks[2, :8])
    with pytest.raises(NoSuchDocument, match="not finished"):
        load_manifest(folder)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 16
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "folder", "swap"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_damaged_segment_is_computed_again(
    sample: store_sample.Sample, expected: dict[str, bytes], tmp_path: Path, damage: str, number: int
) -> None:
    folder = begin(sample, tmp_path)
    path = folder / f"kv-0000{number}.safetensors"
    if damage == "flip":
        flip(path, -1)  # in the representatives, which no block checksum covers
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "swap":
        path.write_bytes((folder / f"kv-0000{1 - number}.safetensors").read_bytes())
    else:
        path.unlink()
        if damage == "folder":
            path.symlink_to(tmp_path)
    with DocumentWriter.open(folder, sample.draft) as writer:
        assert len(writer.segments) == number
        assert len(writer.warnings) == 1
        assert path.name in writer.warnings[0]
    sample.finish(tmp_path)
    assert store_sample.contents(folder) == expected


def test_damage_after_opening_is_not_handed_out(sample: store_sample.Sample, tmp_path: Path) -> None:
    folder = begin(sample, tmp_path)
    with DocumentWriter.open(folder, sample.draft) as writer:
        flip(folder / "kv-00001.safetensors", 4096)
        with pytest.raises(ActqkvError, match="kv-00001"):
            writer.load_segment(1)
        with pytest.raises(ActqkvError, match="block 0 of layer 0"):
            list(writer.read_layer(0))


def test_another_draft_starts_over(sample: store_sample.Sample, tmp_path: Path) -> None:
    folder = begin(sample, tmp_path)
    reading = sample.draft.reading.model_copy(update={"window": 16})
    other = sample.draft.model_copy(update={"reading": reading})
    with DocumentWriter.open(folder, other) as writer:
        assert writer.segments == ()
        assert len(writer.warnings) == 1
    assert set(store_sample.contents(folder)) == {"ingest.json"}
    assert load_unfinished(folder).reading.window == 16


@pytest.mark.parametrize("change", [{"window": 16}, {}])
def test_a_complete_document_that_would_be_read_again_is_left_as_it_is(
    sample: store_sample.Sample, tmp_path: Path, change: dict[str, int]
) -> None:
    """It was read in another way, or has baselines."""
    reading = sample.draft.reading.model_copy(update={"baselines": not change})
    sample.draft = sample.draft.model_copy(update={"reading": reading})
    sample.finish(tmp_path)
    before = store_sample.contents(sample.folder(tmp_path))
    reading = reading.model_copy(update=change)
    other = sample.draft.model_copy(update={"reading": reading, "retrieval_heads": [], "density": []})
    with pytest.raises(ActqkvError, match="already"):
        DocumentWriter.open(sample.folder(tmp_path), other)
    assert store_sample.contents(sample.folder(tmp_path)) == before


def with_other_heads(sample: store_sample.Sample) -> store_sample.Sample:
    """The same document, whose model's retrieval heads are others."""
    heads = [RetrievalHead(layer=0, head=0, score=1.0)]
    keys = sample.blocks[0, :, 0, 0].flatten(0, 1)[None, : store_sample.TOKENS].contiguous()
    return replace(
        sample,
        draft=sample.draft.model_copy(update={"retrieval_heads": heads, "density": []}),
        index={**sample.index, "head_keys": keys},
    )


@pytest.mark.parametrize("complete", [True, False])
def test_other_retrieval_heads_cost_no_segment(sample: store_sample.Sample, tmp_path: Path, complete: bool) -> None:
    other = with_other_heads(sample)
    other.finish(tmp_path / "new")
    folder = sample.folder(tmp_path)
    if complete:
        sample.finish(tmp_path)
    else:
        begin(sample, tmp_path)
    written = {path.name: path.stat().st_ino for path in folder.glob("kv-*")}
    with DocumentWriter.open(folder, other.draft) as writer:
        assert len(writer.segments) == len(written)
        assert writer.warnings == []
    other.finish(tmp_path)
    assert store_sample.contents(folder) == store_sample.contents(other.folder(tmp_path / "new"))
    assert written.items() <= {path.name: path.stat().st_ino for path in folder.glob("kv-*")}.items()


def test_killed_at_any_step_of_storing_other_heads(sample: store_sample.Sample, tmp_path: Path) -> None:
    """The document is always the old one, the new one, or one whose ingest goes on."""
    other = with_other_heads(sample)
    other.finish(tmp_path / "new")
    seen = set()
    for at in range(1, STEPS):
        home = tmp_path / str(at)
        sample.finish(home)
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, at, Killed(), lasting=True)
            try:
                other.finish(home)
            except Killed:
                pass
            else:
                break
        assert faults.count >= at
        folder = sample.folder(home)
        if not (folder / "manifest.json").exists():
            state = "unfinished"
        else:
            state = "new" if other.everything_equal(folder) else "old"
            assert state == "new" or sample.everything_equal(folder)
        if state != "new":
            other.finish(home)
        seen.add(state)
        (folder / "ingest.json").unlink(missing_ok=True)  # of a kill after the last step that matters
        assert store_sample.contents(folder) == store_sample.contents(other.folder(tmp_path / "new"))
    else:
        pytest.fail("STEPS is too small")
    assert seen == {"old", "unfinished", "new"}


def test_with_baselines_it_starts_over(sample: store_sample.Sample, tmp_path: Path) -> None:
    """What the windows before have attended to is nowhere on disk."""
    reading = sample.draft.reading.model_copy(update={"baselines": True})
    sample.draft = sample.draft.model_copy(update={"reading": reading})
    folder = begin(sample, tmp_path)
    with DocumentWriter.open(folder, sample.draft) as writer:
        assert writer.segments == ()
        assert len(writer.warnings) == 1
        assert "starting over" in writer.warnings[0]
    assert set(store_sample.contents(folder)) == {"ingest.json"}
    sample.finish(tmp_path)
    sample.finish(tmp_path / "undisturbed")
    assert store_sample.contents(folder) == store_sample.contents(sample.folder(tmp_path / "undisturbed"))


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[1]", b'{"format": 2}', b"[" * 100_000])
def test_a_damaged_progress_file_starts_over(
    sample: store_sample.Sample, expected: dict[str, bytes], tmp_path: Path, content: bytes
) -> None:
    folder = begin(sample, tmp_path)
    (folder / "ingest.json").write_bytes(content)
    with DocumentWriter.open(folder, sample.draft) as writer:
        assert writer.segments == ()
        assert len(writer.warnings) == 1
    sample.finish(tmp_path)
    assert store_sample.contents(folder) == expected


def test_strays_go_and_strangers_stay(sample: store_sample.Sample, tmp_path: Path) -> None:
    folder = begin(sample, tmp_path, segments=1)
    strays = [
        "kv-00001.safetensors.tmp",
        "kv-00007.safetensors",
        "manifest.json.tmp",
        "text.txt",
        "methods.safetensors",
    ]
    strangers = ["notes.tmp", "kv-1.safetensors", "README"]
    for name in strays + strangers:
        (folder / name).write_bytes(b"x")
    DocumentWriter.open(folder, sample.draft)
    assert set(store_sample.contents(folder)) == {"ingest.json", "kv-00000.safetensors", *strangers}


def test_what_the_writer_refuses(sample: store_sample.Sample, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not named"):
        DocumentWriter.open(tmp_path / "other-name", sample.draft)
    blocks, representatives = sample.blocks[:, :4], sample.representatives[:, :4]
    with DocumentWriter.open(sample.folder(tmp_path), sample.draft) as writer:
        for wrong in (
            (sample.blocks[:, :3], sample.representatives[:, :3]),
            (sample.blocks[:, :5], sample.representatives[:, :5]),
            (blocks[:2], representatives),
            (blocks.double(), representatives),
            (blocks, representatives[:, :3]),
            (blocks, representatives[:, :, :0]),
            (blocks, representatives[0]),
            (blocks, representatives.long()),
        ):
            with pytest.raises(ValueError, match=r"blocks|representatives"):
                writer.write_segment(*wrong)
        with pytest.raises(ValueError, match="0 of 3"):
            writer.commit(sample.text, sample.tensors)
        begin_rest(writer, sample)
        with pytest.raises(ValueError, match="all of its segments"):
            writer.write_segment(blocks, representatives)
        longer = {name: torch.cat([part, part[:1]]) for name, part in sample.tokens.items()}
        far = {"char_start": sample.tokens["char_start"] + 1000}
        changes: list[dict[str, torch.Tensor]] = [
            longer,
            far,
            {"more": sample.tokens["ids"]},
            {name: part.long() for name, part in sample.tokens.items()},
            {"representatives": sample.representatives[:, :9]},
            {"representatives": sample.representatives.half()},
            {"head_keys": sample.index["head_keys"][:0]},
            {"head_keys": sample.index["head_keys"].repeat(2, 1, 1)},
            {"../x": sample.representatives},
            {"h2o": torch.ones(3, 10, dtype=torch.bool)},
            {"h2o": torch.ones(10, 3)},
            {"l1_attended_tokens": torch.zeros(10, dtype=torch.int32)},
        ]
        tries = [(sample.text, {**sample.tensors, **change}) for change in changes]
        tries.append((sample.text + "x", sample.tensors))
        for missing in ("ids", "representatives", "head_keys", "l1"):
            tries.append((sample.text, {name: t for name, t in sample.tensors.items() if name != missing}))
        for text, tensors in tries:
            with pytest.raises(ValueError, match=r"."):
                writer.commit(text, tensors)
            assert not (writer.folder / "manifest.json").exists()
        writer.commit(sample.text, sample.tensors)
    assert sample.everything_equal(sample.folder(tmp_path))


def begin_rest(writer: DocumentWriter, sample: store_sample.Sample) -> None:
    for number in range(3):
        part = slice(number * 4, number * 4 + sample.draft.blocks_of(number))
        writer.write_segment(sample.blocks[:, part], sample.representatives[:, part])


def test_the_progress_file_is_the_draft_and_the_segments(sample: store_sample.Sample, tmp_path: Path) -> None:
    folder = begin(sample, tmp_path)
    progress = load_unfinished(folder)
    assert isinstance(progress, Unfinished)
    assert progress.tokens_done == 32
    assert progress.source == sample.draft.source
    assert str(tmp_path) not in (folder / "ingest.json").read_text()
    assert json.loads((folder / "ingest.json").read_text())["format"] == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the killed processes are forks")
def test_sigkill_at_random_moments(expected: dict[str, bytes], tmp_path: Path) -> None:
    script = Path(__file__).parent / "ingest_and_be_killed.py"
    root = Path(__file__).parents[2]
    paths = (root, root / "kernels", root / "tests" / "helpers")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "homes"), "14"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
    )
    assert done.returncode == 0, done.stderr
    homes = list((tmp_path / "homes").iterdir())
    assert len(homes) == 14
    assert all(store_sample.contents(home / "leuchtturm-0badc0de") == expected for home in homes)
    kills, resumed = map(int, done.stdout.split())
    assert kills > 12
    assert resumed > 3
