"""A full check of one document: everything on disk against its checksums."""

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from actqkv_cli.errors import ActqkvError
from actqkv_cli.store.files import check_file
from actqkv_cli.store.manifest import TENSOR_FILES, Geometry, Segment
from actqkv_cli.store.reader import DocumentReader
from actqkv_cli.store.segment import SegmentFile
from actqkv_cli.store.tensors import names_in


def verify_document(folder: Path) -> list[str]:
    """Problems found in a document, one line each; none: every byte is as it was written. Never raises for damage."""
    try:
        reader = DocumentReader(folder)
    except ActqkvError as error:
        return [error.message]
    checks: list[Callable[[], object]] = [reader.text]
    checks += [partial(reader.tensors, names_in(file)) for file in TENSOR_FILES]
    for segment in reader.manifest.segments:
        checks.append(partial(check_file, folder / segment.file, segment.bytes, segment.xxh3))
        checks.append(partial(_check_blocks, folder, segment, reader.manifest.geometry))
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except ActqkvError as error:
            if error.message not in problems:  # a missing file fails both of its checks
                problems.append(error.message)
    return problems


def _check_blocks(folder: Path, segment: Segment, geometry: Geometry) -> None:
    with contextlib.closing(SegmentFile(folder, segment, geometry)) as opened:
        for layer in range(geometry.layers):
            opened.read_layer(layer)
