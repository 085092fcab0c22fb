import codecs
import hashlib
import time
from io import BytesIO
from pathlib import Path

import pytest

from actqkv_cli.documents import PAGE_SEPARATOR, Document, Page, read_document, read_stream
from actqkv_cli.errors import DocumentError


def read(data: bytes) -> Document:
    return read_stream(BytesIO(data), "notes")


def test_a_text_file_is_one_page(tmp_path: Path) -> None:
    path = tmp_path / "lighthouse.txt"
    path.write_bytes("Łódź\r\nhas no sea.\rNone.\u2028At all.\n".encode())
    document = read_document(path)
    assert document == Document(
        name="lighthouse.txt",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        pages=(Page(1, "Łódź\nhas no sea.\nNone.\nAt all.\n"),),
        page_count=1,
        skipped=(),
        warnings=(),
        extractor="text",
    )
    assert document.text == document.pages[0].text


@pytest.mark.parametrize(
    "data",
    [
        codecs.BOM_UTF8 + "naïve 🗼".encode(),
        codecs.BOM_UTF16_LE + "naïve 🗼".encode("utf-16-le"),
        codecs.BOM_UTF16_BE + "naïve 🗼".encode("utf-16-be"),
        codecs.BOM_UTF32_LE + "naïve 🗼".encode("utf-32-le"),
        codecs.BOM_UTF32_BE + "naïve 🗼".encode("utf-32-be"),
    ],
)
def test_a_byte_order_mark_tells_the_encoding_and_is_dropped(data: bytes) -> None:
    document = read(data)
    assert document.text == "naïve 🗼"
    assert document.warnings == ()


@pytest.mark.parametrize(
    ("data", "text", "encoding"),
    [
        ("“Café” für {0} €".encode("cp1252"), "“Café” für {0} €", "cp1252"),
        (b"caf\xe9 \x81 \x93", "café  ", "latin-1"),
    ],
)
def test_bytes_that_are_not_utf8_are_read_with_a_warning(data: bytes, text: str, encoding: str) -> None:
    document = read(data)
    assert document.text == text
    assert document.warnings == (f"notes: not UTF-8; read as {encoding}, so letters beyond ASCII may be wrong",)


@pytest.mark.parametrize(
    ("data", "text", "encoding"),
    [
        ("Żółta łódź".encode()[:-1], "Żółta łód\ufffd", "UTF-8"),
        (codecs.BOM_UTF8 + b"caf\xe9 au lait", "caf\ufffd au lait", "UTF-8"),
        (codecs.BOM_UTF16_LE + "ab".encode("utf-16-le") + b"\x00\xd8", "ab\ufffd", "UTF-16"),
        (codecs.BOM_UTF16_LE + b"a\x00\x00\xd8b\x00", "a\ufffdb", "UTF-16"),
    ],
)
def test_a_damaged_character_does_not_change_the_encoding(data: bytes, text: str, encoding: str) -> None:
    document = read(data)
    assert document.text == text
    document.text.encode("utf-8")
    assert len(document.warnings) == 1
    assert f"not quite valid {encoding}" in document.warnings[0]


@pytest.mark.parametrize(
    "data",
    [
        b"\x89PNG\r\n\x1a\n\x00\x00\xff\xfe",
        b"caf\xe9\x00",
        b"\xff\x01\x02\x03\x04\x05",
        b"\x00" * 100,
        "no mark".encode("utf-16-le"),
    ],
)
def test_binary_is_refused(data: bytes) -> None:
    with pytest.raises(DocumentError) as caught:
        read(data)
    assert caught.value.message == "notes: binary, not text"
    assert caught.value.exit_code == 3
    assert caught.value.hint


def test_control_characters_are_removed() -> None:
    assert read(b"a\0b\x07c\x1b\x7f\td\ne\xc2\x9bf\xc2\x85g\x0bh").text == "abc\td\nef\ng\nh"


@pytest.mark.parametrize("data", [b"", b" \r\n\t\f \xc2\xa0", codecs.BOM_UTF16_LE, b"\0    "])
def test_nothing_but_white_space_is_refused(data: bytes) -> None:
    with pytest.raises(DocumentError, match=r"^notes: no text in it$"):
        read(data)


def test_form_feeds_part_pages() -> None:
    document = read(b"one\n\f \n\fthree\n\f")
    assert document.pages == (Page(1, "one\n"), Page(3, "three\n"))
    assert document.page_count == 3
    assert document.skipped == (2,)
    assert document.warnings == ()
    assert document.text == f"one\n{PAGE_SEPARATOR}three\n"


def test_page_starts_are_offsets_into_the_text() -> None:
    document = read("één\ftwee 🗼🗼\f\fvier\f".encode())
    assert len(document.page_starts) == len(document.pages) == 3
    for start, page in zip(document.page_starts, document.pages, strict=True):
        assert document.text[start : start + len(page.text)] == page.text


@pytest.mark.parametrize("unit", [b"word ", b"     ", b"\r", b"caf\xe9 ", b"\x00ab"])
def test_long_single_lines_take_linear_time(unit: bytes) -> None:
    data = unit * (5_000_000 // len(unit)) + b"x"
    start = time.perf_counter()
    document = read(data)
    assert time.perf_counter() - start < 3
    assert document.text.endswith("x")


def test_hostile_names_stay_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(DocumentError) as caught:
        read_document(tmp_path / "a\nb\udcff.txt")
    assert caught.value.message == f"{tmp_path}/a?b?.txt: no such file"
    assert read_stream(BytesIO(b"text"), "a\nb\udcff").name == "a?b?"


def test_what_the_system_refuses_is_a_document_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DocumentError, match=r"cannot be read \(Is a directory\)"):
        read_document(tmp_path)
    with pytest.raises(DocumentError, match=r"gone\.txt: no such file"):
        read_document(tmp_path / "gone.txt")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DocumentError, match=r"secret\.txt: cannot be read \(Permission denied\)"):
        read_document(tmp_path / "secret.txt")


def test_a_stream_that_cannot_be_read() -> None:
    class Broken(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(DocumentError, match=r"^stdin: cannot be read \(Input/output error\)$"):
        read_stream(Broken(), "stdin")
