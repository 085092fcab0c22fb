"""Plain text files of unknown encoding."""

import codecs

from actqkv_cli.documents.clean import clean_text
from actqkv_cli.documents.document import Extract
from actqkv_cli.errors import DocumentError

# UTF-32 first: its little-endian mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
    (codecs.BOM_UTF8, "UTF-8-sig"),
)
# Not counted: newlines, tabs, form feeds, and what terminals write (backspace, escape).
_CONTROL_BYTE = bytes(set(range(32)) - set(b"\b\t\n\v\f\r\x1b"))


def extract_text(data: bytes, label: str) -> Extract:
    """Pages are what form feeds part. DocumentError where the bytes are not text, or hold none."""
    text, warning = _decode(data, label)
    pages = clean_text(text).split("\f")
    if not pages[-1].strip():
        pages.pop()  # a form feed may end every page, the last one too
    pages = [page if page.strip() else "" for page in pages]
    if not any(pages):
        raise DocumentError(f"{label}: no text in it", "nothing but white space was found")
    return Extract(pages, [warning] if warning else [], "text")


def _decode(data: bytes, label: str) -> tuple[str, str]:
    """The text, and a warning where the encoding had to be guessed or did not fit."""
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "")
    try:
        text = data.decode(encoding or "UTF-8")
    except UnicodeDecodeError:
        pass
    else:
        # Mostly control characters: UTF-16 without its mark, or no text at all.
        if not encoding and _control_bytes(data) * 3 > len(data):
            raise _not_text(label)
        return text, ""

    if not encoding and (b"\0" in data or _control_bytes(data) * 20 > len(data)):
        raise _not_text(label)
    if encoding or _is_damaged_utf8(data):
        encoding = (encoding or "UTF-8").removesuffix("-sig")
        warning = f"{label}: not quite valid {encoding}; unreadable characters became \N{REPLACEMENT CHARACTER}"
        return data.decode(encoding, "replace").removeprefix("\ufeff"), warning
    # cp1252 leaves five bytes undefined, latin-1 none.
    encoding = "latin-1" if any(byte in data for byte in b"\x81\x8d\x8f\x90\x9d") else "cp1252"
    warning = f"{label}: not UTF-8; read as {encoding}, so letters beyond ASCII may be wrong"
    return data.decode(encoding), warning


def _control_bytes(data: bytes) -> int:
    return len(data) - len(data.translate(None, _CONTROL_BYTE))


def _is_damaged_utf8(data: bytes) -> bool:
    """More characters beyond ASCII decode than fail: a file cut short, say, and not another encoding."""
    text = data.decode("UTF-8", "replace")
    beyond_ascii = len(text) - len(text.encode("ascii", "ignore"))
    return text.count("\N{REPLACEMENT CHARACTER}") * 2 < beyond_ascii


def _not_text(label: str) -> DocumentError:
    return DocumentError(f"{label}: binary, not text", "give a PDF, or a text file in UTF-8")
