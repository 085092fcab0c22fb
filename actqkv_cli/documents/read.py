"""One file or stream to one Document."""

import hashlib
from pathlib import Path
from typing import BinaryIO

from actqkv_cli.documents.clean import one_line
from actqkv_cli.documents.document import Document, Page
from actqkv_cli.documents.find import unreadable
from actqkv_cli.documents.pdf import extract_pdf
from actqkv_cli.documents.text import extract_text
from actqkv_cli.errors import DocumentError


def read_document(path: Path) -> Document:
    """A PDF, by its ending or its first bytes; anything else as text. DocumentError where that fails."""
    label = one_line(str(path))
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DocumentError(f"{label}: no such file", "check the path") from error
    except OSError as error:
        raise unreadable(label, error) from error
    return _read(data, one_line(path.name), label, is_pdf=path.suffix.lower() == ".pdf")


def read_stream(stream: BinaryIO, name: str) -> Document:
    """The same for stdin, where only the first bytes tell a PDF. `name` stands for a file's name."""
    label = one_line(name)
    try:
        data = stream.read()
    except OSError as error:
        raise unreadable(label, error) from error
    return _read(data, label, label, is_pdf=False)


def _read(data: bytes, name: str, label: str, *, is_pdf: bool) -> Document:
    """`label` names the source in messages: two folders may hold files of one name."""
    extract = extract_pdf if is_pdf or data.startswith(b"%PDF-") else extract_text
    texts, warnings, extractor = extract(data, label)
    return Document(
        name=name,
        sha256=hashlib.sha256(data).hexdigest(),
        pages=tuple(Page(number, text) for number, text in enumerate(texts, start=1) if text),
        page_count=len(texts),
        skipped=tuple(number for number, text in enumerate(texts, start=1) if not text),
        warnings=tuple(warnings),
        extractor=extractor,
    )
