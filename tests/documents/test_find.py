import os
from pathlib import Path

import pytest

from actqkv_cli.documents import find_documents
from actqkv_cli.errors import DocumentError


def touch(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")
    return paths


def test_files_are_taken_as_named_and_in_that_order(tmp_path: Path) -> None:
    b, a, hidden = touch(tmp_path, "b.log", "a.txt", ".notes")
    assert find_documents([b, a, hidden]) == [b, a, hidden]


def test_a_folder_means_the_documents_below_it(tmp_path: Path) -> None:
    wanted = touch(tmp_path, "B.PDF", "a.txt", "sub/c.md", "sub/deep/d.markdown", "z.text")
    touch(tmp_path, "x.docx", "noending", ".hidden.txt", ".git/e.txt", "sub/.cache/deep/f.md")
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "nowhere")
    assert find_documents([tmp_path]) == wanted


def test_a_hidden_folder_may_be_named(tmp_path: Path) -> None:
    wanted = touch(tmp_path, ".notes/a.txt")
    assert find_documents([tmp_path / ".notes"]) == wanted


def test_links_are_harmless(tmp_path: Path) -> None:
    (target,) = touch(tmp_path, "sub/a.txt")
    (tmp_path / "sub/loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "sub/same.txt").symlink_to(target)
    assert find_documents([tmp_path]) == [target]

    itself = tmp_path / "itself.txt"
    itself.symlink_to(itself)
    with pytest.raises(DocumentError, match="no such file"):
        find_documents([itself])


def test_a_file_meant_twice_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = touch(tmp_path, "a.txt", "b.txt")
    monkeypatch.chdir(tmp_path)
    assert find_documents([b, tmp_path, Path("a.txt"), b]) == [b, a]


def test_a_folder_without_documents(tmp_path: Path) -> None:
    touch(tmp_path, "x.docx")
    with pytest.raises(DocumentError) as caught:
        find_documents([tmp_path])
    assert caught.value.message == f"{tmp_path}: no documents in this folder"
    assert ".markdown" in caught.value.hint


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    (a,) = touch(tmp_path, "a.txt")
    with pytest.raises(DocumentError, match=r"gone\.pdf: no such file"):
        find_documents([a, tmp_path / "gone.pdf"])


def test_a_path_too_long_for_the_system() -> None:
    with pytest.raises(DocumentError, match=r"cannot be read \(File name too long\)"):
        find_documents([Path("a" * 5000)])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt", "locked/b.txt")
    (tmp_path / "locked").chmod(0)
    try:
        with pytest.raises(DocumentError, match=r"locked: cannot be read \(Permission denied\)"):
            find_documents([tmp_path])
    finally:
        (tmp_path / "locked").chmod(0o700)
