"""What a document's folder says about itself: manifest.json, or ingest.json while the ingest is unfinished.

Both are pretty JSON with sorted keys and a "checksum" (xxh3_128 of the canonical JSON of all the rest). A manifest may
come from elsewhere, so every number has an upper bound and every file name is fixed by its place.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from actqkv_cli.errors import IdentityMismatch, NoSuchDocument
from actqkv_cli.store import jsonfile
from actqkv_cli.store.files import damaged

FORMAT = 1
MANIFEST, PROGRESS = "manifest.json", "ingest.json"
TEXT, TOKENS, INDEX = "text.txt", "tokens.safetensors", "index.safetensors"
METHODS = "methods.safetensors"
TENSOR_FILES = {TOKENS: "token_file", INDEX: "index", METHODS: "methods"}  # and their places in a manifest
ID_PATTERN = r"^[a-z0-9][a-z0-9-]{0,63}$"
_MAX_TOKENS = 1 << 28
_MAX_SEGMENTS = 99_999  # five digits in the file name
_ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def _printable(value: str) -> str:
    if _UNPRINTABLE.search(value):
        raise ValueError("control characters are not allowed")
    return value


ShortText = Annotated[str, Field(max_length=1024), AfterValidator(_printable)]
Xxh3 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
FileBytes = Annotated[int, Field(ge=1, le=1 << 44)]
Tokens = Annotated[int, Field(ge=0, le=_MAX_TOKENS)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Geometry(_Model):
    """Shape of the cache: blocks are (2, kv_heads, block_size, head_dim) of `dtype`, segment_blocks to a segment."""

    layers: int = Field(ge=1, le=1024)
    kv_heads: int = Field(ge=1, le=1024)
    head_dim: int = Field(ge=1, le=4096)
    block_size: int = Field(default=32, ge=1, le=4096)
    segment_tokens: int = Field(default=4096, ge=1, le=1 << 20)
    dtype: Literal["float32", "bfloat16", "float16"]

    @property
    def block_bytes(self) -> int:
        """Bytes of one layer's block: keys and values."""
        return 2 * self.kv_heads * self.block_size * self.head_dim * _ITEMSIZE[self.dtype]

    @property
    def segment_blocks(self) -> int:
        """Blocks of one layer in a whole segment."""
        return self.segment_tokens // self.block_size

    @model_validator(mode="after")
    def _check(self) -> "Geometry":
        if self.segment_tokens % self.block_size:
            raise ValueError("segment_tokens is not a multiple of block_size")
        if self.block_bytes > 64 << 20 or self.layers * self.segment_blocks > 1 << 22:
            raise ValueError("the geometry is too large")
        return self


class SourceFile(_Model):
    """The ingested file: `name` without folder, sha256 of its bytes, `characters` = len(text)."""

    name: str = Field(min_length=1, max_length=255)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    page_count: int = Field(ge=0, le=10_000_000)
    characters: int = Field(ge=0, le=1 << 33)
    extractor: ShortText
    skipped: list[Annotated[int, Field(ge=0, le=10_000_000)]] = Field(default=[], max_length=1_000_000)

    @model_validator(mode="after")
    def _check(self) -> "SourceFile":
        _printable(self.name)
        if any(page > self.page_count for page in self.skipped):
            raise ValueError("a skipped page is beyond the last page")
        return self


class ReadingSettings(_Model):
    """How the document was prefilled; window, sink, local and budget in tokens; baselines: whether what only the
    compared methods need was kept too."""

    window: int = Field(ge=1, le=_MAX_TOKENS)
    sink: Tokens
    local: Tokens
    budget: Tokens
    positions: Literal["clamped", "compact", "original"]
    prefill: Literal["windowed", "full"]
    representative: Literal["mean", "anchor"]
    score: Literal["dot", "cosine"]
    baselines: bool = False


class RetrievalHead(_Model):
    """A query head that looks from a question to its answer's place; score is the mean reciprocal rank of
    what was planted to find it."""

    layer: int = Field(ge=0, le=1023)
    head: int = Field(ge=0, le=65_535)
    score: float


class FileEntry(_Model):
    """Size in bytes and xxh3_128 of a whole file."""

    bytes: Annotated[int, Field(ge=0, le=1 << 44)]
    xxh3: Xxh3


class Segment(_Model):
    """One kv file: its blocks per layer, size in bytes, and xxh3_128 of the whole file, of the header (length and
    JSON) and of the table of block checksums, which ties every single block to this manifest."""

    file: str = Field(pattern=r"^kv-[0-9]{5}\.safetensors$")
    blocks: int = Field(ge=1, le=1 << 20)
    bytes: FileBytes
    xxh3: Xxh3
    header_xxh3: Xxh3
    table_xxh3: Xxh3


class Draft(_Model):
    """All that is known before the first window is prefilled. `tokens` counts the whole stored prompt, template
    included; the document itself begins at token `document_start`. `density`: once
    one per layer, and read by nothing any more."""

    format: Literal[1] = 1
    id: str = Field(pattern=ID_PATTERN)
    source: SourceFile
    model: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")], ShortText] = Field(max_length=64)
    geometry: Geometry
    reading: ReadingSettings
    tokens: int = Field(ge=1, le=_MAX_TOKENS)
    document_start: Tokens
    retrieval_heads: list[RetrievalHead] = Field(default=[], max_length=4096)
    density: list[float] = Field(default=[], max_length=1024)

    @property
    def block_count(self) -> int:
        """Blocks of one layer, the last one possibly partly filled."""
        return math.ceil(self.tokens / self.geometry.block_size)

    @property
    def segment_count(self) -> int:
        return math.ceil(self.block_count / self.geometry.segment_blocks)

    def blocks_of(self, number: int) -> int:
        """Blocks per layer that segment `number` holds: segment_blocks, but for the last."""
        return min(self.geometry.segment_blocks, self.block_count - number * self.geometry.segment_blocks)

    @model_validator(mode="after")
    def _check_draft(self) -> "Draft":
        if self.segment_count > _MAX_SEGMENTS or self.geometry.layers * self.block_count > 1 << 27:
            raise ValueError("the document is too large")
        size = self.geometry.block_size
        if self.reading.sink % size or self.reading.local % size or not self.reading.local:
            raise ValueError("sink and local window must be whole blocks, and there must be a local window")
        if self.document_start > self.tokens:
            raise ValueError("document_start is beyond the last token")
        if len(self.density) not in (0, self.geometry.layers):
            raise ValueError("density must have one value per layer, or none")
        if any(head.layer >= self.geometry.layers for head in self.retrieval_heads):
            raise ValueError("a retrieval head's layer is beyond the last layer")
        return self


class Unfinished(Draft):
    """A draft and the segments that are on disk: the content of ingest.json."""

    segments: tuple[Segment, ...] = Field(default=(), max_length=_MAX_SEGMENTS)

    @property
    def tokens_done(self) -> int:
        """Tokens in the segments that are on disk."""
        return min(len(self.segments) * self.geometry.segment_tokens, self.tokens)

    @model_validator(mode="after")
    def _check_segments(self) -> "Unfinished":
        if len(self.segments) > self.segment_count:
            raise ValueError("more segments than the document has")
        for number, segment in enumerate(self.segments):
            if segment.file != segment_name(number) or segment.blocks != self.blocks_of(number):
                raise ValueError(f"segment {number} has a wrong file name or number of blocks")
        return self


class Manifest(Unfinished):
    """A whole document: the content of manifest.json. `methods`: absent from documents of before there was one."""

    text: FileEntry
    token_file: FileEntry
    index: FileEntry
    methods: FileEntry | None = None

    @model_validator(mode="after")
    def _check_files(self) -> "Manifest":
        if len(self.segments) != self.segment_count:
            raise ValueError(f"{len(self.segments)} segments instead of {self.segment_count}")
        if not self.source.characters <= self.text.bytes <= 4 * self.source.characters:
            raise ValueError("the text's size does not fit its number of characters")
        if self.token_file.bytes > 12 * self.tokens + (1 << 20):
            raise ValueError("the token file is too large")
        # These are loaded whole: they must stay in proportion to what is really there.
        max_bytes = 2 * sum(segment.bytes for segment in self.segments) + (64 << 20)
        if self.index.bytes > max_bytes or (self.methods is not None and self.methods.bytes > max_bytes):
            raise ValueError("the index is too large")
        return self


def synthetic_draft(
    name: str, geometry: Geometry, reading: ReadingSettings, tokens: int, characters: int = 0, **fields: Any
) -> Draft:
    """A draft of tokens that stand in no file, for calibrating and measuring."""
    source = SourceFile(name=name, sha256="0" * 64, page_count=1, characters=characters, extractor="none")
    known = {"id": name, "source": source, "geometry": geometry, "reading": reading, "tokens": tokens}
    return Draft.model_validate({"model": {}, "document_start": 0, **known, **fields})


def segment_name(number: int) -> str:
    """The file of segment `number`, counted from 0."""
    return f"kv-{number:05d}.safetensors"


def encode(record: Unfinished) -> bytes:
    """The file for `record` (Unfinished or Manifest): the same record gives the same bytes."""
    return jsonfile.encode(record.model_dump(mode="json"))


def load_manifest(folder: Path) -> Manifest:
    """manifest.json of a document's folder.

    Raises NoSuchDocument (no such folder, or its ingest is unfinished), IdentityMismatch (another format),
    StoreDamaged (anything that is not exactly as it was written).
    """
    if not (folder / MANIFEST).exists():
        if not folder.is_dir():
            raise NoSuchDocument(f"no document at {folder}", "`actqkv ls` shows what there is")
        if (folder / PROGRESS).exists():
            raise NoSuchDocument(
                f"the ingest of {folder.name} is not finished",
                "run the same ingest command again: it resumes",
            )
    return _load(folder / MANIFEST, Manifest)


def load_unfinished(folder: Path) -> Unfinished:
    """ingest.json of a document's folder. Raises IdentityMismatch, StoreDamaged."""
    return _load(folder / PROGRESS, Unfinished)


def decisive(identity: Mapping[str, str]) -> dict[str, str]:
    """The part of a model's identity that must be equal: all but the name."""
    return {field: value for field, value in identity.items() if field != "name"}


def check_identity(manifest_model: Mapping[str, str], current: Mapping[str, str]) -> None:
    """Raises IdentityMismatch, naming the first field (name before all) in which the models differ."""
    for field in sorted({*manifest_model, *current}, key=lambda field: (field != "name", field)):
        theirs, ours = manifest_model.get(field), current.get(field)
        if theirs != ours:
            raise IdentityMismatch(
                f"the document was read by another model: {field} is {_shorten(theirs)} in the store"
                f" and {_shorten(ours)} here",
                "choose that model with --model, or ingest the document again with this one",
            )


_Record = TypeVar("_Record", bound=Unfinished)


def _load(path: Path, kind: type[_Record]) -> _Record:
    body, intact = jsonfile.read(path)
    number = body.get("format")
    if type(number) is int and number != FORMAT:
        raise IdentityMismatch(
            f"{path.parent.name}/{path.name} is of format {number}, and this actqkv reads format {FORMAT}",
            "use the actqkv that wrote it, or ingest the document again",
        )
    if not intact:
        raise damaged(path, "the content does not match its checksum")
    if type(number) is not int:  # 1.0 and true would pass for 1 below
        raise damaged(path, "the format is not a number")
    try:
        # Through JSON, because strict validation takes a list for a tuple there and nowhere else.
        return kind.model_validate_json(jsonfile.canonical(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise damaged(path, f"{where + ': ' if where else ''}{first['msg']}"[:200]) from error


def _shorten(value: str | None) -> str:
    if value is None:
        return "absent"
    return value if len(value) <= 40 else f"{value[:18]}…{value[-12:]}"
