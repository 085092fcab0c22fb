from collections.abc import Callable
from io import BytesIO

import pytest
from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

PdfMaker = Callable[..., bytes]


@pytest.fixture
def make_pdf() -> PdfMaker:
    """Bytes of a PDF with one page per argument: its lines, "" for a scan, None for a page that raises."""

    def make(*pages: str | None, password: str | None = None) -> bytes:
        writer = PdfWriter()
        font = DictionaryObject(
            {
                NameObject("/Type"): NameObject("/Font"),
                NameObject("/Subtype"): NameObject("/Type1"),
                NameObject("/BaseFont"): NameObject("/Helvetica"),
            }
        )
        for text in pages:
            page = writer.add_blank_page(width=600, height=800)
            page[NameObject("/Resources")] = DictionaryObject(
                {NameObject("/Font"): DictionaryObject({NameObject("/F1"): font})}
            )
            shown = "".join(f"({line}) Tj 0 -14 Td " for line in (text or "").split("\n"))
            content = DecodedStreamObject()
            content.set_data(f"BT /F1 12 Tf 50 750 Td {shown}ET".encode("latin-1"))
            if text is None:
                content[NameObject("/Filter")] = NameObject("/NoSuchFilter")
            page[NameObject("/Contents")] = writer._add_object(content)
        if password is not None:
            writer.encrypt(password, owner_password="owner", algorithm="AES-256")
        buffer = BytesIO()
        writer.write(buffer)
        return buffer.getvalue()

    return make
