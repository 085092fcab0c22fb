"""Every failure that actqkv foresees, with the exit code that it documents.

ActqkvError                1  unexpected failure
├── UsageError             2  the command's words do not fit together
├── DocumentError          3  unreadable, or no text in it
├── NoSuchDocument         4  nothing in the library by that name
├── IdentityMismatch       5  the store was made by another model or format
├── StoreDamaged           6  a checksum, a size or a field is wrong
├── OutOfMemory            7  host or device memory ran out
├── DiskFull               8  no space left
│   └── OverDiskLimit      8  a document is more than the library may take
└── ModelUnavailable       9  the model is not on this machine and cannot be fetched

And how what others raise is recognised as one of them.
"""

import errno

# The last two are what Python says of an extension that found no memory while it was imported, and did not say so.
_NO_MEMORY = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc",
    "can't start new thread",  # each wants memory of its own
    "failed to map segment",  # of a library
    "error return without exception set", "returned null without setting an exception",
)  # fmt: skip


class ActqkvError(Exception):
    """`message` is one line that says what is wrong; `hint` is one line that says what to do about it."""

    exit_code = 1
    kind = "failure"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ActqkvError):
    exit_code = 2
    kind = "usage"


class DocumentError(ActqkvError):
    exit_code = 3
    kind = "document"


class NoSuchDocument(ActqkvError):
    exit_code = 4
    kind = "no_such_document"


class IdentityMismatch(ActqkvError):
    exit_code = 5
    kind = "identity_mismatch"


class StoreDamaged(ActqkvError):
    exit_code = 6
    kind = "store_damaged"


class OutOfMemory(ActqkvError):
    exit_code = 7
    kind = "out_of_memory"


class DiskFull(ActqkvError):
    exit_code = 8
    kind = "disk_full"


class OverDiskLimit(DiskFull):
    pass


class ModelUnavailable(ActqkvError):
    exit_code = 9
    kind = "model_unavailable"


EXIT_INTERRUPTED = 130


def out_of_memory(error: BaseException) -> bool:
    """Whether host or device memory ran out; torch and CUDA say so with several types, but in these words."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY)


def out_of_space(error: BaseException | str) -> bool:
    """Whether the disk is full or the quota used up, by an error or what a process wrote of one; some libraries tell
    it in words only."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


def first_line(error: BaseException | str) -> str:
    """The first line of what an error says, or its type where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
