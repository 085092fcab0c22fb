"""JSON that says when it was changed: pretty, sorted, with the xxh3_128 of its own content."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import xxhash

from actqkv_cli.store.files import damaged, open_regular, read_exact

_MAX_BYTES = 64 << 20


def json_object(data: bytes) -> dict[str, object]:
    """A JSON object. Raises ValueError for anything else, bytes that are not UTF-8, duplicate keys, NaN, infinities."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def canonical(body: Mapping[str, object]) -> bytes:
    """The same bytes for the same content, whatever the order and white space. Raises ValueError for infinities."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def encode(body: Mapping[str, object]) -> bytes:
    """A file for `body`, with its "checksum"."""
    whole = {**body, "checksum": xxhash.xxh3_128_hexdigest(canonical(body))}
    return (json.dumps(whole, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read(path: Path) -> tuple[dict[str, object], bool]:
    """The object in a file without its "checksum", and whether that checksum is right. Raises StoreDamaged."""
    fd, size = open_regular(path)
    try:
        if size > _MAX_BYTES:
            raise damaged(path, f"{size} bytes are too many for it")
        data = bytearray(size)
        read_exact(fd, memoryview(data), 0, path)
    finally:
        os.close(fd)
    try:
        body = json_object(bytes(data))
        checksum = body.pop("checksum", None)
        return body, checksum == xxhash.xxh3_128_hexdigest(canonical(body))
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"not readable as JSON ({error})") from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not a number")
