import hashlib
import logging
import random
import re
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pypdf
import pytest

from actqkv_cli.documents import Document, Page, read_document, read_stream
from actqkv_cli.documents.pdf import clean_page, page_ranges
from actqkv_cli.errors import DocumentError

PdfMaker = Callable[..., bytes]


def read(data: bytes) -> Document:
    return read_stream(BytesIO(data), "book.pdf")


def refusal(data: bytes) -> DocumentError:
    with pytest.raises(DocumentError) as caught:
        read(data)
    assert caught.value.message.startswith("book.pdf: ")
    assert "\n" not in caught.value.message + caught.value.hint
    assert caught.value.hint
    return caught.value


def test_a_pdf_is_read_page_by_page(tmp_path: Path, make_pdf: PdfMaker) -> None:
    path = tmp_path / "book.PDF"
    path.write_bytes(make_pdf("Who built\nthe light-\nhouse", "Two"))
    assert read_document(path) == Document(
        name="book.PDF",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        pages=(Page(1, "Who built\nthe light-\nhouse"), Page(2, "Two")),
        page_count=2,
        skipped=(),
        warnings=(),
        extractor=f"pypdf {pypdf.__version__}",
    )


def test_the_first_bytes_tell_a_pdf(tmp_path: Path, make_pdf: PdfMaker) -> None:
    path = tmp_path / "download"
    path.write_bytes(make_pdf("One"))
    assert read_document(path).extractor.startswith("pypdf ")
    assert read(path.read_bytes()).text == "One"


def test_a_bad_page_costs_that_page(make_pdf: PdfMaker) -> None:
    document = read(make_pdf("One", None, "Three", "", "", "Six"))
    assert document.pages == (Page(1, "One"), Page(3, "Three"), Page(6, "Six"))
    assert document.page_count == 6
    assert document.skipped == (2, 4, 5)
    unread, empty = document.warnings
    assert unread.startswith("book.pdf: could not read page 2 (")
    assert "NoSuchFilter" in unread
    assert empty == "book.pdf: no text on pages 4-5 (scanned, or blank)"
    for start, page in zip(document.page_starts, document.pages, strict=True):
        assert document.text[start : start + len(page.text)] == page.text


@pytest.mark.parametrize("error", [RecursionError, KeyError, AssertionError, ZeroDivisionError])
def test_whatever_a_page_raises(error: type[Exception], make_pdf: PdfMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    original = pypdf.PageObject.extract_text

    def extract(page: pypdf.PageObject) -> str:
        if page.page_number == 0:
            raise error("a\nb")
        return original(page)

    monkeypatch.setattr(pypdf.PageObject, "extract_text", extract)
    document = read(make_pdf("One", "Two"))
    assert document.pages == (Page(2, "Two"),)
    assert len(document.warnings) == 1
    assert f"could not read page 1 ({error.__name__}: " in document.warnings[0]
    assert "\n" not in document.warnings[0]


def test_a_scanned_pdf_is_refused(make_pdf: PdfMaker) -> None:
    error = refusal(make_pdf(*[""] * 12))
    assert error.message == "book.pdf: has no text layer (scanned?): no text on pages 1-12"
    assert "ocrmypdf" in error.hint
    assert error.exit_code == 3


def test_a_pdf_with_bad_pages_only_is_refused(make_pdf: PdfMaker) -> None:
    assert refusal(make_pdf(None, None)).message.startswith("book.pdf: could not read pages 1-2 (")


def test_a_pdf_without_pages_is_refused(make_pdf: PdfMaker) -> None:
    assert refusal(make_pdf()).message == "book.pdf: has no pages"


def test_an_empty_password_opens(make_pdf: PdfMaker) -> None:
    document = read(make_pdf("One", password=""))
    assert document.text == "One"
    assert document.warnings == ()


def test_an_unknown_password_is_refused(make_pdf: PdfMaker) -> None:
    error = refusal(make_pdf("One", password="secret"))
    assert error.message == "book.pdf: is encrypted"
    assert "qpdf" in error.hint
    assert "--decrypt" in error.hint


@pytest.mark.parametrize("data", [b"%PDF-1.7", b"%PDF-1.7\n" + bytes(range(256)) * 20])
def test_garbage_is_refused(data: bytes) -> None:
    assert "not a readable PDF" in refusal(data).message


@pytest.mark.parametrize("data", [b"", b"<html>log in first</html>"])
def test_the_ending_promises_a_pdf(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "book.pdf"
    path.write_bytes(data)
    with pytest.raises(DocumentError, match=r"book\.pdf: not a readable PDF"):
        read_document(path)


def test_damage_anywhere_ends_in_pages_or_in_one_line(make_pdf: PdfMaker, capfd: pytest.CaptureFixture[str]) -> None:
    whole = make_pdf("One", "Two", "Three")
    chance = random.Random(0)
    broken = [whole[: len(whole) * tenth // 10] for tenth in range(1, 10)]
    for _ in range(60):
        noisy = bytearray(whole)
        for _ in range(8):
            noisy[chance.randrange(8, len(noisy))] = chance.randrange(256)
        broken.append(bytes(noisy))
    for data in broken:
        try:
            document = read(data)
        except DocumentError as error:
            messages: tuple[str, ...] = (error.message, error.hint)
        else:
            messages = document.warnings
            assert document.pages
        assert not any("\n" in message for message in messages)
    assert capfd.readouterr() == ("", "")


def test_lost_pages_are_told(make_pdf: PdfMaker) -> None:
    document = read(make_pdf("One", "Two").replace(b"/Count 2", b"/Count 9"))
    assert document.page_count == 2
    assert document.warnings == ("book.pdf: 7 of its pages were not found, so page numbers may be too low",)


def test_pypdf_logs_nothing(make_pdf: PdfMaker, caplog: pytest.LogCaptureFixture) -> None:
    level = logging.getLogger("pypdf").level
    data = re.sub(rb"startxref\s+\d+", b"startxref\n7", make_pdf("One"))  # pypdf warns, and finds the table
    assert read(data).text == "One"
    assert caplog.records == []
    assert logging.getLogger("pypdf").level == level


def test_pypdf_is_imported_for_pdfs_only() -> None:
    program = (
        "import io, sys; from actqkv_cli.documents import read_stream as r;"
        "r(io.BytesIO(b'text'), 'notes'); sys.exit('pypdf' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("\n\nHead  \n\n \t\n\n\nBody\x00\x07 \n\n", "Head\n\nBody"),
        ("a light-\nhouse", "a light-\nhouse"),
        ("  indented\r\nline\fend", "  indented\nline\nend"),
        ("lone \ud83d, pair \ud83d\uddfc", "lone \ufffd, pair 🗼"),
        (" \n\x0c\n ", ""),
    ],
)
def test_page_text_is_cleaned(raw: str, clean: str) -> None:
    assert clean_page(raw) == clean


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([4], "page 4"), ([1, 2, 3], "pages 1-3"), ([1, 3, 4, 9], "pages 1, 3-4, 9")],
)
def test_page_ranges(numbers: list[int], text: str) -> None:
    assert page_ranges(numbers) == text
