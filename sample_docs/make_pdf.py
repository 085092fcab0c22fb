"""Make harbour-handbook.pdf from harbour-handbook.md (needs fpdf2).

Source format: paragraphs separated by blank lines; a line "# ..." is a
chapter title; a line "---" ends a page. One source page is one PDF page:
the script stops with an error if the text of a page does not fit on it.

    python make_pdf.py [OUTPUT.pdf]
"""

import sys
from datetime import UTC, datetime
from pathlib import Path

from fpdf import FPDF

HERE = Path(__file__).resolve().parent


def pages(text):
    for page in text.split("\n---\n"):
        yield [" ".join(p.split()) for p in page.split("\n\n") if p.strip()]


def make_pdf(source, target):
    pdf = FPDF(format="A4", unit="mm")
    pdf.set_creation_date(datetime(2024, 1, 1, tzinfo=UTC))
    pdf.set_title("The Port Ellary Harbour Handbook")
    pdf.set_margins(25, 22, 25)
    # An overflow must be an error, never a silent extra page.
    pdf.set_auto_page_break(False)
    bottom = pdf.h - 22
    for number, blocks in enumerate(pages(source.read_text(encoding="utf-8")), 1):
        pdf.add_page()
        for block in blocks:
            if block.startswith("# "):
                pdf.set_font("Helvetica", "B", 15)
                pdf.multi_cell(0, 8, block[2:], align="L", new_x="LMARGIN", new_y="NEXT")
                pdf.ln(2)
            else:
                pdf.set_font("Times", "", 11)
                pdf.multi_cell(0, 5, block, align="L", new_x="LMARGIN", new_y="NEXT")
                pdf.ln(2.2)
        if pdf.get_y() > bottom:
            raise SystemExit(f"page {number} ({blocks[0]!r}) overflows by {pdf.get_y() - bottom:.1f} mm")
    pdf.output(str(target))
    return pdf.pages_count


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "harbour-handbook.pdf"
    n = make_pdf(HERE / "harbour-handbook.md", out)
    print(f"{out}: {n} pages, {out.stat().st_size} bytes")
