"""What reading a file yields."""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

PAGE_SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Page:
    """The text of one page; `number` counts from 1 over every page of the source, empty ones too."""

    number: int
    text: str


@dataclass(frozen=True)
class Document:
    """A source as text that encodes as UTF-8, has `\\n` for newlines and no control characters but `\\t`."""

    name: str
    """The file's name, without its folder; for stdin, the name that the caller gave."""
    sha256: str
    """Of the source's bytes, in hex."""
    pages: tuple[Page, ...]
    """Every page that has text, in order; at least one."""
    page_count: int
    """Pages of the source, those without text included."""
    skipped: tuple[int, ...]
    """Numbers of the pages that have no text or could not be read."""
    warnings: tuple[str, ...]
    """One line each, naming the file."""
    extractor: str
    """What cut the text out of the source, with its version: "pypdf 7.1.0", or "text"."""

    @cached_property
    def text(self) -> str:
        """The pages' texts, joined by PAGE_SEPARATOR."""
        return PAGE_SEPARATOR.join(page.text for page in self.pages)

    @cached_property
    def page_starts(self) -> tuple[int, ...]:
        """The offset in `text`, in characters, at which each of `pages` begins."""
        lengths = (len(page.text) + len(PAGE_SEPARATOR) for page in self.pages[:-1])
        return tuple(accumulate(lengths, initial=0))


class Extract(NamedTuple):
    """What an extractor hands over: a text for every page of the source, "" where there is none."""

    texts: list[str]
    warnings: list[str]
    extractor: str
