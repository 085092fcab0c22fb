"""Documents that stay open: how many, which leave, and that those in use do not."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from actqkv_cli.engine.conversation import Conversation
from actqkv_cli.engine.document import OpenDocument
from actqkv_cli.engine.document_cache import DocumentCache
from actqkv_cli.engine.session import session_over
from actqkv_cli.errors import NoSuchDocument
from actqkv_cli.store.manifest import INDEX, METHODS
from actqkv_cli.store.tensors import names_in

COUNT, TOKENS = 9, 96
PLENTY = 1 << 30
BUDGET = tiny.SINK + 4 * tiny.BLOCK


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Nine documents of three segments each. Not to be changed."""
    root = tmp_path_factory.mktemp("library")
    how = tiny.reading(positions="compact")
    for seed in range(COUNT):
        tiny.ingest(tiny.model(), tiny.tokens(TOKENS, seed), root / f"{seed}", how, tiny.HEADS)
    return [root / f"{seed}" for seed in range(COUNT)]


Caches = Callable[..., DocumentCache]


@pytest.fixture
def cache() -> Iterator[Caches]:
    """Makes caches, which are closed at the end."""
    with ExitStack() as closing:

        def make(limit: int = PLENTY) -> DocumentCache:
            made = DocumentCache(tiny.model(), limit)
            closing.callback(made.close)
            return made

        yield make


def asked(kept: DocumentCache, folders: Sequence[Path]) -> Tensor:
    """The logits behind a question."""
    with kept.pinned(folders) as documents, session_over(tiny.model(), kept.context_of(documents), BUDGET) as session:
        return session.start(tiny.question(tiny.tokens(7, 50)), "hybrid", 4).logits


def bytes_of_one(kept: DocumentCache, folder: Path) -> int:
    asked(kept, [folder])
    return kept.bytes_held


def open_files(folder: Path) -> int:
    """How many files of a folder this process has open."""
    here = Path("/proc/self/fd")
    if not here.exists():
        pytest.skip("there is no /proc")
    found = 0
    for descriptor in here.iterdir():
        with suppress(OSError):  # the listing's own is closed by now
            found += folder in descriptor.readlink().parents
    return found


def test_what_is_asked_again_is_not_read_again(cache: Caches, folders: list[Path]) -> None:
    kept = cache()
    first = asked(kept, folders[:1])
    with kept.pinned(folders[:1]) as documents:
        before = documents[0]
    again = asked(kept, folders[:1])
    with kept.pinned(folders[:1]) as documents:
        assert documents[0] is before
    assert torch.equal(first, again)
    assert before.reader.bytes_read.blocks == before.reader.bytes_read.index == 0


def test_the_least_recently_used_leave_when_bytes_run_out(cache: Caches, folders: list[Path]) -> None:
    one = bytes_of_one(cache(), folders[0])
    kept = cache(limit=3 * one)
    for folder in (folders[0], folders[1], folders[2], folders[0], folders[3]):
        asked(kept, [folder])
    with kept.pinned([]):
        assert kept.bytes_held <= 3 * one
    assert kept.folders == [folders[2], folders[0], folders[3]]


def test_more_is_kept_where_there_is_more_room(cache: Caches, folders: list[Path]) -> None:
    kept = cache()
    for folder in folders:
        asked(kept, [folder])
    assert kept.folders == folders
    assert kept.bytes_held == sum(bytes_of_one(cache(), folder) for folder in folders)


def test_bytes_are_those_of_tensors_and_pages(cache: Caches, folders: list[Path]) -> None:
    kept = cache()
    with kept.pinned(folders[:2]) as documents:
        assert kept.bytes_held == 0  # nothing was asked for yet
        first = documents[0]
        for file in (INDEX, METHODS):
            held = kept.bytes_held
            first.load(names_in(file))
            assert kept.bytes_held - held == sum(t.nbytes for t in first.reader.tensors(names_in(file)).values()) > 0
        held = kept.bytes_held
        first.pool.reserve(2)
        first.blocks(0, torch.arange(2))
        assert kept.bytes_held - held == 2 * first.reader.manifest.geometry.block_bytes
        held = kept.bytes_held
        row = kept.context_of(documents).resident.head_keys
        assert kept.bytes_held - held == row.nbytes + documents[1].load(())["head_keys"].nbytes


def test_a_document_in_use_is_spared_however_little_room_there_is(cache: Caches, folders: list[Path]) -> None:
    kept = cache(limit=0)
    with kept.pinned(folders[:1]) as (used,):
        for folder in folders[1:]:
            asked(kept, [folder])
            assert folders[0] in kept.folders
            assert len(kept.folders) <= 2  # and what was asked last
        with kept.pinned(folders[:1]) as (again,):
            assert again is used
    asked(kept, folders[1:2])
    assert kept.folders == [folders[1]]


def test_files_are_closed_with_what_leaves_and_with_all(cache: Caches, folders: list[Path]) -> None:
    root = folders[0].parent
    kept = cache()
    for folder in folders[:3]:
        asked(kept, [folder])
    assert open_files(folders[2]) > 0
    assert open_files(root) == open_files(folders[2])  # others are kept without
    with kept.pinned(folders[:2]) as documents:
        for document in documents:
            document.reader.read_blocks(0, [0, 5, 9])
        assert open_files(folders[0]) == open_files(folders[1]) == 3
    kept.close()
    assert open_files(root) == 0
    assert (kept.folders, kept.bytes_held) == ([], 0)


def test_what_is_still_read_ahead_opens_no_file_of_a_closed_document(cache: Caches, folders: list[Path]) -> None:
    kept = cache()
    with kept.pinned(folders[:1]) as (document,):
        document.pool.reserve(12)
        for layer in range(4):
            document.prefetch(layer, torch.arange(12))
    kept.close()
    assert not document.pool._prefetching
    assert open_files(folders[0]) == 0


@pytest.mark.parametrize("limit", [0, PLENTY])
def test_two_sessions_over_nine_documents_while_a_chat_is_live(cache: Caches, folders: list[Path], limit: int) -> None:
    with closing(cache()) as other:
        alone = list(turns(other, folders[4]))
        expected = {count: asked(other, folders[:count]) for count in (1, COUNT)}
    kept = cache(limit)
    chat = turns(kept, folders[4])
    said = [next(chat)]
    for folder in folders:  # the ninth would once have closed the chat's document
        asked(kept, [folder])
    said.append(next(chat))
    assert torch.equal(asked(kept, folders), expected[COUNT])
    assert torch.equal(asked(kept, folders[:1]), expected[1])
    said += chat
    assert len(said) == len(alone) == 3
    assert all(map(torch.equal, said, alone))
    kept.close()
    assert open_files(folders[0].parent) == 0


def turns(kept: DocumentCache, folder: Path) -> Iterator[Tensor]:
    """The logits behind each of three turns of a conversation, which is live between them."""
    model = tiny.model()
    with kept.pinned([folder]) as documents:
        conversation = Conversation(documents, model)
        for turn in range(3):
            with session_over(model, conversation.context, BUDGET) as session:
                run = session.start(tiny.question(tiny.tokens(9, 60 + turn)), "hybrid", 4)
                logits = run.logits
                run.step(turn)
            conversation.add(run)
            yield logits


@pytest.mark.parametrize("change", ["removed", "anew"])
def test_what_was_changed_leaves_when_nobody_uses_it(
    cache: Caches, folders: list[Path], tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in folders[:2]]
    closed: list[OpenDocument] = []
    close: Callable[[OpenDocument], None] = OpenDocument.close
    monkeypatch.setattr(OpenDocument, "close", lambda document: (closed.append(document), close(document)))
    kept = cache()
    asked(kept, ours)
    with kept.pinned(ours[:1]) as (before,):
        if change == "removed":
            shutil.rmtree(ours[0])
        else:
            (ours[0] / "manifest.json").touch()
        kept.prune()
        assert kept.folders == ours[1:]
        assert before not in closed
        if change == "anew":
            with kept.pinned(ours[:1]) as (after,):
                assert after is not before
        else:
            with pytest.raises(NoSuchDocument), kept.pinned([ours[1], ours[0]]):
                pass
            assert all(not cached.pins for cached in kept._cached.values())
    assert before in closed
