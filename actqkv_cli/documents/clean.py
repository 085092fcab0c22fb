"""Text that is safe to store, to tokenize and to print."""

import re

_NEWLINE = re.compile("\r\n?|[\v\x85\u2028\u2029]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_NOT_ON_ONE_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def clean_text(text: str) -> str:
    """Every kind of newline becomes `\\n`; control characters go, except tabs, newlines and form feeds."""
    return _CONTROL.sub("", _NEWLINE.sub("\n", text))


def one_line(text: str) -> str:
    """`text` as it can be printed inside a one-line message, whatever a file name or an error holds."""
    return _NOT_ON_ONE_LINE.sub("?", text)
