"""The text layer of a PDF, page by page."""

import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import TYPE_CHECKING

from actqkv_cli.documents.clean import clean_text, one_line
from actqkv_cli.documents.document import Extract
from actqkv_cli.errors import DocumentError

if TYPE_CHECKING:
    from pypdf import PdfReader

_REPAIR = "it may be damaged; try to repair it: qpdf in.pdf out.pdf"


def extract_pdf(data: bytes, label: str) -> Extract:
    """A page that cannot be read costs that page and a warning.

    DocumentError where the file is encrypted or no PDF, or where no page has text.
    """
    import pypdf

    with _silence():
        reader = _open(data, label)
        texts: list[str] = []
        failures: dict[int, str] = {}
        for number, page in enumerate(reader.pages, start=1):
            try:
                texts.append(clean_page(page.extract_text()))
            except Exception as error:  # pypdf meets a bad page with nearly any exception
                texts.append("")
                failures[number] = _describe(error)
        lost = _declared_pages(reader) - len(texts)

    empty = [number for number, text in enumerate(texts, start=1) if not text and number not in failures]
    if not any(texts):
        raise _without_text(label, empty, failures)
    notes = []
    if lost > 0:
        notes.append(f"{label}: {lost} of its pages were not found, so page numbers may be too low")
    if failures:
        reason = next(iter(failures.values()))
        notes.append(f"{label}: could not read {page_ranges(failures)} ({reason})")
    if empty:
        notes.append(f"{label}: no text on {page_ranges(empty)} (scanned, or blank)")
    return Extract(texts, notes, f"pypdf {pypdf.__version__}")


def page_ranges(numbers: Iterable[int]) -> str:
    """Page numbers in rising order, put shortly: "page 4", "pages 1-3, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"page {text}" if text.isdecimal() else f"pages {text}"


def clean_page(text: str) -> str:
    """Text as pypdf gives it, without control characters, trailing spaces and more than one empty line."""
    # Halves of a surrogate pair that pypdf gave one by one find each other here; a lone one is replaced.
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    lines = clean_text(text).replace("\f", "\n").split("\n")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in lines)).strip("\n")


def _open(data: bytes, label: str) -> "PdfReader":
    import pypdf

    try:
        reader = pypdf.PdfReader(BytesIO(data))
        locked = reader.is_encrypted and not reader.decrypt("")
        if not locked:
            len(reader.pages)  # walks the page tree, which may be damaged too
    except Exception as error:  # as above
        raise DocumentError(f"{label}: not a readable PDF ({_describe(error)})", _REPAIR) from error
    if locked:
        raise DocumentError(
            f"{label}: is encrypted",
            "decrypt it with its password first: qpdf --password=... --decrypt in.pdf out.pdf",
        )
    return reader


def _declared_pages(reader: "PdfReader") -> int:
    """The number of pages the file says it has, 0 where it does not say: pypdf leaves lost ones out."""
    with suppress(Exception):
        count = reader.root_object["/Pages"]["/Count"]  # type: ignore[index]
        return int(count)
    return 0


def _without_text(label: str, empty: list[int], failures: dict[int, str]) -> DocumentError:
    if empty:
        return DocumentError(
            f"{label}: has no text layer (scanned?): no text on {page_ranges(empty)}",
            "run OCR first: ocrmypdf in.pdf out.pdf",
        )
    if failures:
        reason = next(iter(failures.values()))
        return DocumentError(f"{label}: could not read {page_ranges(failures)} ({reason})", _REPAIR)
    return DocumentError(f"{label}: has no pages", _REPAIR)


def _describe(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}")[:120].removesuffix(": ")


@contextmanager
def _silence() -> Iterator[None]:
    """Keeps what pypdf logs, and Python warnings on its way, off stderr."""
    logger = logging.getLogger("pypdf")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
