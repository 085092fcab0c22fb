"""Writing one document, segment by segment, so that a kill at any moment costs one segment at most."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from actqkv_cli.errors import ActqkvError, IdentityMismatch, OverDiskLimit, StoreDamaged
from actqkv_cli.store.files import DISK_FULL_HINT, TEMPORARY, sync_folder, tree_bytes, write_atomic, write_errors
from actqkv_cli.store.manifest import (
    MANIFEST,
    PROGRESS,
    TENSOR_FILES,
    TEXT,
    Draft,
    FileEntry,
    Manifest,
    Segment,
    Unfinished,
    encode,
    load_manifest,
    load_unfinished,
    segment_name,
)
from actqkv_cli.store.segment import (
    SegmentFile,
    block_shape,
    cache_dtype,
    check_segment,
    load_whole,
    representatives_shape,
    segment_bytes,
    write_segment_file,
)
from actqkv_cli.store.tensors import check_document, file_bytes, like, names_in, write_tensors

_JSON_PER_SEGMENT = 512  # bytes that one more segment adds to ingest.json, at most
_OURS = re.compile(
    rf"(kv-\d{{5}}\.safetensors|{'|'.join(map(re.escape, (*TENSOR_FILES, TEXT, MANIFEST, PROGRESS)))})"
    rf"({re.escape(TEMPORARY)})?"
)


class DocumentWriter:
    """A document being ingested; make one with `DocumentWriter.open`.

    `segments`: those on disk, in order, each verified. `warnings`: one line for every thing found damaged on resuming.
    """

    def __init__(self, folder: Path, draft: Draft, disk_limit: int | None) -> None:
        self.folder, self.draft, self.warnings = folder, draft, list[str]()
        self._disk_limit = disk_limit
        self._segments: list[Segment] = []

    @classmethod
    def open(cls, folder: Path, draft: Draft, disk_limit: int | None = None) -> "DocumentWriter":
        """Starts the document in `folder` (named as draft.id), or resumes it if it was begun with an equal draft: other
        retrieval heads cost a document what is stored for them, and nothing else.

        `disk_limit`: bytes that the library, folder.parent, may take. Raises ActqkvError if the document is
        complete already, DiskFull, ValueError if folder and draft.id differ.
        """
        if folder.name != draft.id:
            raise ValueError(f"folder {folder.name!r} is not named as the document {draft.id!r}")
        writer = cls(folder, draft, disk_limit)
        with write_errors(folder):
            if not folder.is_dir():
                folder.mkdir(parents=True)
                sync_folder(folder.parent)
            if (folder / MANIFEST).exists():
                writer._reopen()
            writer._segments = writer._resume()
            writer._sweep()
            writer._save_progress(writer._segments)
        return writer

    def __enter__(self) -> "DocumentWriter":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held open between calls; what is on disk stays for the next run."""

    @property
    def segments(self) -> tuple[Segment, ...]:
        return tuple(self._segments)

    def load_segment(self, number: int) -> tuple[Tensor, Tensor]:
        """Blocks (L, n, 2, Hkv, b, d) and representatives (L, n, 1, Hkv, d) of a segment. Raises StoreDamaged."""
        return load_whole(self.folder, self._segments[number], self.draft.geometry)

    def read_layer(self, layer: int) -> Iterator[Tensor]:
        """One layer's blocks (n, 2, Hkv, b, d), segment by segment, every block verified. Raises StoreDamaged."""
        if not 0 <= layer < self.draft.geometry.layers:
            raise ValueError(f"there is no layer {layer}")
        for segment in self.segments:
            with contextlib.closing(SegmentFile(self.folder, segment, self.draft.geometry)) as opened:
                blocks = opened.read_layer(layer)
            yield blocks

    def write_segment(self, blocks: Tensor | Sequence[Tensor], representatives: Tensor) -> None:
        """Writes the next segment and makes it durable.

        `blocks` (L, n, 2, Hkv, b, d), or L tensors (n, 2, Hkv, b, d), and `representatives` (L, n, 1, Hkv, d), of the
        geometry's dtype, on any device. n must be draft.blocks_of(len(segments)). Raises DiskFull (nothing of the
        segment is left, the same call may be tried again), ValueError for another shape or dtype.
        """
        number, geometry = len(self._segments), self.draft.geometry
        if number >= self.draft.segment_count:
            raise ValueError("the document has all of its segments already")
        count = self.draft.blocks_of(number)
        self._check_shapes(blocks, representatives, count)
        self._reserve(segment_bytes(geometry, count) + _JSON_PER_SEGMENT)
        segment = write_segment_file(self.folder / segment_name(number), geometry, blocks, representatives)
        self._save_progress([*self._segments, segment])
        self._segments.append(segment)

    def commit(self, text: str, tensors: Mapping[str, Tensor]) -> Manifest:
        """Completes the document. `text` must have source.characters characters; `tensors`: as `store.tensors` lists
        them. Raises DiskFull, ValueError.
        """
        if len(self._segments) != self.draft.segment_count:
            raise ValueError(f"{len(self._segments)} of {self.draft.segment_count} segments are written")
        if len(text) != self.draft.source.characters:
            raise ValueError(f"the text has {len(text)} characters, the draft says {self.draft.source.characters}")
        check_document(tensors, self.draft)
        encoded, parts = text.encode(), {}
        for file, place in TENSOR_FILES.items():
            if ours := {name: tensors[name] for name in names_in(file) if name in tensors}:
                parts[place] = self.folder / file, ours
        self._reserve(len(encoded) + sum(file_bytes(like(ours)) for _, ours in parts.values()))
        written = write_atomic(self.folder / TEXT, [encoded])
        manifest = Manifest.model_validate(
            {
                **self._fields(),
                "segments": self.segments,
                "text": FileEntry(bytes=written.bytes, xxh3=written.xxh3),
                **{place: write_tensors(path, ours) for place, (path, ours) in parts.items()},
            }
        )
        write_atomic(self.folder / MANIFEST, [encode(manifest)])
        with write_errors(self.folder / PROGRESS):
            (self.folder / PROGRESS).unlink(missing_ok=True)
            sync_folder(self.folder)
        return manifest

    def _reopen(self) -> None:
        """Make an unfinished document of a complete one whose retrieval heads are others."""
        complete = load_manifest(self.folder)
        same = complete.retrieval_heads == self.draft.retrieval_heads
        if same or not self._same_reading(complete) or complete.reading.baselines:  # what only reading tells is lost
            (self.folder / PROGRESS).unlink(missing_ok=True)
            raise ActqkvError(f"document {self.draft.id} is in the library already", "remove it to ingest it again")
        self._save_progress(complete.segments)
        (self.folder / MANIFEST).unlink()
        sync_folder(self.folder)

    def _same_reading(self, record: Unfinished) -> bool:
        """Whether its segments are what reading by the draft would write."""
        read_by = set(Draft.model_fields) - {"retrieval_heads", "density"}  # which only look at what was read
        return record.model_dump(include=read_by) == self.draft.model_dump(include=read_by)

    def _resume(self) -> list[Segment]:
        """The segments of an earlier run that can be kept: those before the first one that is not whole."""
        if not (self.folder / PROGRESS).exists():
            return []
        try:
            progress = load_unfinished(self.folder)
        except (StoreDamaged, IdentityMismatch) as error:
            self.warnings.append(f"starting over: {error.message}")
            return []
        if not self._same_reading(progress):
            self.warnings.append("starting over: the unfinished ingest had other settings")
            return []
        if self.draft.reading.baselines and progress.segments:
            self.warnings.append("starting over: the attention that tokens received so far is not kept")
            return []
        kept: list[Segment] = []
        for segment in progress.segments:
            try:
                check_segment(self.folder, segment, self.draft.geometry)
            except StoreDamaged as error:
                self.warnings.append(f"resuming before a damaged segment: {error.message}")
                break
            kept.append(segment)
        return kept

    def _sweep(self) -> None:
        """Removes what a killed run left behind and nothing lists: temporary files, segments, small files."""
        listed = {PROGRESS, *(segment.file for segment in self._segments)}
        for path in self.folder.iterdir():
            if path.name not in listed and _OURS.fullmatch(path.name):
                path.unlink()

    def _save_progress(self, segments: Sequence[Segment]) -> None:
        progress = Unfinished.model_validate({**self._fields(), "segments": tuple(segments)})
        write_atomic(self.folder / PROGRESS, [encode(progress)])

    def _fields(self) -> dict[str, object]:
        return {name: getattr(self.draft, name) for name in Draft.model_fields}

    def _reserve(self, size: int) -> None:
        """Raises OverDiskLimit if `size` more bytes would put the library over its limit."""
        if self._disk_limit is None:
            return
        used = tree_bytes(self.folder.parent)
        if used + size > self._disk_limit:
            raise OverDiskLimit(
                f"the library takes {used:,} bytes; {size:,} more are over the limit of {self._disk_limit:,}",
                DISK_FULL_HINT,
            )

    def _check_shapes(self, blocks: Tensor | Sequence[Tensor], representatives: Tensor, count: int) -> None:
        geometry = self.draft.geometry
        expected = (count, *block_shape(geometry))
        if len(blocks) != geometry.layers:
            raise ValueError(f"blocks of {len(blocks)} layers instead of {geometry.layers}")
        for layer in range(geometry.layers):
            if tuple(blocks[layer].shape) != expected or blocks[layer].dtype != cache_dtype(geometry):
                raise ValueError(
                    f"layer {layer}: blocks are {blocks[layer].dtype} {tuple(blocks[layer].shape)}"
                    f" instead of {geometry.dtype} {expected}"
                )
        found = tuple(representatives.shape)
        if found != representatives_shape(geometry, count) or representatives.dtype != cache_dtype(geometry):
            raise ValueError(f"representatives are {representatives.dtype} {found}, which does not fit the geometry")
