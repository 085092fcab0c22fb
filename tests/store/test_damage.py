"""Whatever happens to a store's bytes, whoever wrote them: an error, or what was written. Never else."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import store_sample
import torch
import xxhash

from actqkv_cli.errors import IdentityMismatch, NoSuchDocument, StoreDamaged
from actqkv_cli.store import jsonfile
from actqkv_cli.store.header import build_header, parse_header
from actqkv_cli.store.manifest import Manifest, check_identity, encode, load_manifest
from actqkv_cli.store.reader import DocumentReader
from actqkv_cli.store.tensors import STORED, names_in, write_tensors
from actqkv_cli.store.verify import verify_document


def harmless(sample: store_sample.Sample, folder: Path) -> bool:
    """Whether everything read is as written; False if an error says that it is not."""

    def check() -> None:
        assert sample.everything_equal(folder), "wrong data without an error"

    return store_sample.outcome(check) is None


def test_any_change_of_any_byte_of_the_manifest(sample: store_sample.Sample, folder: Path) -> None:
    path, choose = folder / "manifest.json", random.Random(5)
    original, manifest = path.read_bytes(), load_manifest(folder)
    errors = 0
    for position in range(len(original)):
        for change in (1, choose.randrange(1, 256)):
            data = bytearray(original)
            data[position] ^= change
            path.write_bytes(data)
            try:
                assert load_manifest(folder) == manifest
            except (StoreDamaged, IdentityMismatch):
                errors += 1
    assert errors > len(original)  # the rest is white space


def test_a_flipped_byte_anywhere(sample: store_sample.Sample, folder: Path) -> None:
    choose, files = random.Random(7), sorted(folder.iterdir())
    unnoticed = 0
    for round_ in range(400):
        path = files[round_ % len(files)]
        original = path.read_bytes()
        data = bytearray(original)
        # Segments are mostly padding here: aim at the header, then anywhere behind it, in turn.
        position = choose.randrange(len(data)) if round_ % 2 else choose.randrange(min(len(data), 400))
        data[position] ^= choose.randrange(1, 256)
        path.write_bytes(data)
        unnoticed += harmless(sample, folder)
        problems = verify_document(folder)
        assert problems or (path.name == "manifest.json" and load_manifest(folder))
        assert len(problems) <= 2
        path.write_bytes(original)
    assert unnoticed < 100  # representatives in segments, which only a resumed ingest reads, and white space
    assert verify_document(folder) == []


@pytest.mark.parametrize("name", ["manifest.json", "text.txt", "tokens.safetensors", "index.safetensors",
                                  "methods.safetensors", "kv-00000.safetensors", "kv-00002.safetensors"])  # fmt: skip
@pytest.mark.parametrize(
    "damage",
    ["empty", "8 bytes", "half", "one short", "one long", "gone", "folder", "fifo", "link", "zeros", "noise"],
)
def test_broken_files(sample: store_sample.Sample, folder: Path, tmp_path: Path, name: str, damage: str) -> None:
    path = folder / name
    data = path.read_bytes()
    if name == "manifest.json":
        data = data.rstrip()  # the last line break carries nothing
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "fifo":
        os.mkfifo(path)
    elif damage == "link":
        (tmp_path / "elsewhere").write_bytes(data)
        path.symlink_to(tmp_path / "elsewhere")
    elif damage != "gone":
        noise = random.Random(1).randbytes(len(data))
        path.write_bytes({
            "empty": b"", "8 bytes": data[:8], "half": data[: len(data) // 2], "one short": data[:-1],
            "one long": data + b"\0", "zeros": bytes(len(data)), "noise": noise,
        }[damage])  # fmt: skip
    assert not harmless(sample, folder)
    problems = verify_document(folder)
    assert any(name in problem for problem in problems)


def test_the_error_names_file_layer_and_block(folder: Path) -> None:
    path = folder / "kv-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[4096 + (2 * 4 + 3) * 256 + 17] ^= 4
    path.write_bytes(data)
    with DocumentReader(folder) as reader:
        reader.read_blocks(1, range(10))
        with pytest.raises(StoreDamaged, match=r"kv-00001\.safetensors: block 3 of layer 2") as caught:
            reader.read_blocks(2, [1, 4, 5, 6, 7, 8])
    assert caught.value.hint


def test_swapped_segments(sample: store_sample.Sample, folder: Path) -> None:
    one, other = folder / "kv-00000.safetensors", folder / "kv-00001.safetensors"
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    with DocumentReader(folder) as reader:
        for block in range(8):
            with pytest.raises(StoreDamaged):
                reader.read_blocks(0, [block])
    assert len(verify_document(folder)) == 4


@pytest.mark.parametrize(
    "name", ["kv-00000.safetensors", "index.safetensors", "methods.safetensors", "tokens.safetensors"]
)
def test_a_file_of_another_document_with_the_same_shape(
    sample: store_sample.Sample, folder: Path, tmp_path: Path, name: str
) -> None:
    other = store_sample.make(seed=9)
    other.tokens["ids"] += 1
    other.finish(tmp_path / "other")
    shutil.copy(other.folder(tmp_path / "other") / name, folder / name)
    assert not harmless(sample, folder)
    assert verify_document(folder)


def test_a_garbage_folder(tmp_path: Path) -> None:
    for name in ("nothing", "a-file"):
        assert verify_document(tmp_path / name)
        with pytest.raises(NoSuchDocument):
            load_manifest(tmp_path / name)
        (tmp_path / "a-file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreDamaged, match="missing"):
        load_manifest(tmp_path / "empty")


def forge(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest and gives it a right checksum, as only someone with bad intent would."""
    body, _ = jsonfile.read(folder / "manifest.json")
    change(body)
    (folder / "manifest.json").write_bytes(jsonfile.encode(body))


def put(*keys: Any, value: Any) -> Callable[[dict[str, Any]], object]:
    def change(body: Any) -> None:
        for key in keys[:-1]:
            body = body[key]
        body[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        put("segments", 0, "file", value="../kv-00000.safetensors"),
        put("segments", 0, "file", value="/etc/passwd"),
        put("segments", 0, "file", value="kv-00001.safetensors"),
        put("segments", 0, "file", value="kv-00000.safetensors\n"),
        put("segments", 0, "blocks", value=3),
        put("segments", 0, "blocks", value=-4),
        put("segments", 0, "blocks", value=4.0),
        put("segments", 0, "blocks", value=True),
        put("segments", 0, "bytes", value=1 << 62),
        put("segments", 0, "bytes", value=-1),
        put("segments", 0, "xxh3", value="0" * 31),
        put("segments", value=[]),
        put("id", value="../../home"),
        put("id", value=".locks"),
        put("geometry", "layers", value=1 << 40),
        put("geometry", "layers", value=0),
        put("geometry", "kv_heads", value=1025),
        put("geometry", "block_size", value=4096),
        put("geometry", "head_dim", value=-4),
        put("geometry", "segment_tokens", value=18),
        put("geometry", "block_size", value=1 << 30),
        put("geometry", "dtype", value="float64"),
        put("tokens", value=1 << 40),
        put("tokens", value=0),
        put("tokens", value=10**400),
        put("document_start", value=39),
        put("text", "bytes", value=1 << 43),
        put("token_file", "bytes", value=1 << 43),
        put("index", "bytes", value=1 << 43),
        put("index", "file", value="../index.safetensors"),
        put("methods", "bytes", value=1 << 43),
        put("methods", "xxh3", value="0" * 31),
        put("methods", value={}),
        put("methods", value="methods.safetensors"),
        put("source", "characters", value=1),
        put("source", "name", value="\x1b]0;owned\x07"),
        put("source", "name", value="x" * 256),
        put("source", "name", value=""),
        put("source", "sha256", value="Z" * 64),
        put("source", "skipped", value=[3]),
        put("source", "skipped", value=list(range(3)) * 400_000),
        put("model", "name", value="x" * 2000),
        put("model", "Name", value="x"),
        put("model", value={f"a{number}": "" for number in range(70)}),
        put("density", value=[0.5]),
        put("density", value=[0.5, 0.5, "0.5"]),
        put("retrieval_heads", value=[{"layer": 3, "head": 0, "score": 1.0}]),
        put("reading", "window", value=0),
        put("reading", "positions", value="random"),
        put("reading", "baselines", value=1),
        put("surprise", value=1),
    ],
)
def test_hostile_manifests(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    forge(folder, change)
    with pytest.raises(StoreDamaged, match=r"manifest\.json"):
        load_manifest(folder)
    assert len(verify_document(folder)) == 1


@pytest.mark.parametrize(
    "change",
    [
        put("geometry", "layers", value=2),
        put("geometry", "kv_heads", value=1),
        put("geometry", "head_dim", value=2),
        put("geometry", "dtype", value="bfloat16"),
        put("index", "bytes", value=60 << 20),
        put("methods", "bytes", value=60 << 20),
        put("segments", 0, "bytes", value=1 << 43),
        put("source", "page_count", value=1),
        put("source", "characters", value=52),
        put("tokens", value=37),
    ],
)
def test_manifests_that_do_not_fit_the_files(
    sample: store_sample.Sample, folder: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    forge(folder, lambda body: (put("density", value=[])(body), put("source", "skipped", value=[])(body)))
    index = write_tensors(folder / "index.safetensors", {"representatives": sample.representatives})
    forge(folder, lambda body: (put("retrieval_heads", value=[])(body), put("index", value=index.model_dump())(body)))
    assert verify_document(folder) == []
    forge(folder, change)
    load_manifest(folder)
    assert verify_document(folder)
    with DocumentReader(folder) as reader, pytest.raises(StoreDamaged):
        reader.text(), reader.tensors(STORED), reader.read_blocks(0, [0])


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'{"a": 1, "a": 1}', "twice"),
        (b'{"a": {"b": 1, "b": 2}}', "twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e999, "checksum": ""}', "JSON"),
        (b'{"a": 1e999}', "JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "JSON"),
        (b'{"a": "\xff"}', "JSON"),
        (b'\xef\xbb\xbf{"a": 1}', "JSON"),
        (b'{"a": "\\ud800"}', "checksum"),
        (b"[" * 200_000, "JSON"),
        (b'{"a":' * 200_000, "JSON"),
        (b"null", "object"),
        (b"", "JSON"),
        (b"{}", "checksum"),
        (b'{"checksum": null}', "checksum"),
    ],
)
def test_json_that_is_not_ours(folder: Path, content: bytes, what: str) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(StoreDamaged, match=what):
        load_manifest(folder)


def test_a_huge_manifest_is_not_read(folder: Path) -> None:
    with (folder / "manifest.json").open("r+b") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(StoreDamaged, match="too many"):
        load_manifest(folder)


@pytest.mark.parametrize("number", [0, 2, 10**30])
def test_another_format_is_told_apart_from_damage(folder: Path, number: int) -> None:
    forge(folder, put("format", value=number))
    with pytest.raises(IdentityMismatch, match=f"format {number},") as caught:
        load_manifest(folder)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("value", [True, 1.0, "1", None, [1]])
def test_a_format_that_is_no_number_is_damage(folder: Path, value: object) -> None:
    forge(folder, put("format", value=value))
    with pytest.raises(StoreDamaged):
        load_manifest(folder)


PARTS = [*((f"layers.{layer}", "F32", (4, 2, 2, 4, 4)) for layer in range(3)),
         ("checksums", "I64", (3, 4)), ("representatives", "F32", (3, 4, 1, 2, 4))]  # fmt: skip


def header_of(text: str) -> bytes:
    data = text.encode() + b" " * (-(8 + len(text)) % 4096)
    return len(data).to_bytes(8, "little") + data


@pytest.mark.parametrize(
    "header",
    [
        (1 << 40).to_bytes(8, "little") + bytes(4088),
        (1).to_bytes(8, "little") + bytes(4088),
        bytes(4096),
        b"\xff" * 4096,
        header_of("{}"),
        header_of("[]"),
        header_of('{"layers.0": 1}'),
        header_of('{"layers.0":{"dtype":"F32","shape":[1e3],"data_offsets":[0,4000]}}'),
        header_of('{"layers.0":{"dtype":"F32","shape":[-1],"data_offsets":[0,-4]}}'),
        header_of('{"layers.0":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,4611686018427387904]}}'),
        build_header(PARTS[:4], 4096),
        build_header([*PARTS[1:3], PARTS[0], *PARTS[3:]], 4096),
        build_header([PARTS[0], ("layers.x", *PARTS[1][1:]), *PARTS[2:]], 4096),
        build_header([*PARTS[:3], ("checksums", "I64", (4, 3)), PARTS[4]], 4096),
        build_header([*PARTS[:4], ("representatives", "F32", (3, 4, 2, 2, 2))], 4096),
        build_header([*PARTS[:4], ("representatives", "I32", (3, 4, 1, 2, 4))], 4096),
        build_header([("layers.0", "F32", (4, 2, 2, 16)), *PARTS[1:]], 4096),
        build_header([("layers.0", "I32", (4, 2, 2, 4, 4)), *PARTS[1:]], 4096),
    ],
)
def test_hostile_segment_headers_with_right_checksums(folder: Path, header: bytes) -> None:
    path = folder / "kv-00000.safetensors"
    data = header + path.read_bytes()[4096:]
    path.write_bytes(data)
    forge(folder, put("segments", 0, "xxh3", value=xxhash.xxh3_128_hexdigest(data)))
    forge(folder, put("segments", 0, "header_xxh3", value=xxhash.xxh3_128_hexdigest(header)))
    with DocumentReader(folder) as reader:
        assert reader.read_blocks(0, [4]).shape == (1, 2, 2, 4, 4)
        with pytest.raises(StoreDamaged, match="kv-00000"):
            reader.read_blocks(0, [0])
    assert any("kv-00000" in problem for problem in verify_document(folder))


@pytest.mark.parametrize(
    "entry",
    [
        '{"dtype":"F32","shape":[2],"data_offsets":[0,4]}',
        '{"dtype":"F32","shape":[3],"data_offsets":[0,8]}',
        '{"dtype":"BF16","shape":[2],"data_offsets":[0,8]}',
        '{"dtype":"F32","shape":[2],"data_offsets":[8,0]}',
        '{"dtype":"F32","shape":[2],"data_offsets":[4,12]}',
        '{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}',
        '{"dtype":"F32","shape":[true,2],"data_offsets":[0,8]}',
        '{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]}',
        '{"dtype":"F8","shape":[8],"data_offsets":[0,8]}',
        '{"dtype":["F32"],"shape":[2],"data_offsets":[0,8]}',
        '{"dtype":"F32","shape":[2]}',
        '{"dtype":"F32","shape":[2],"data_offsets":[0,8],"more":1}',
        '{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}',
    ],
)
def test_impossible_tensors(entry: str) -> None:
    header = header_of(f'{{"a":{entry}}}')
    with pytest.raises(ValueError, match=r"."):
        parse_header(header, len(header) + 8)


def test_gaps_and_overlaps() -> None:
    parts = [("a", "U8", (4,)), ("b", "U8", (4,)), ("none", "U8", (0,))]
    header = build_header(parts, 8)
    assert list(parse_header(header, len(header) + 8)) == ["a", "b", "none"]
    for size in (7, 9):
        with pytest.raises(ValueError, match="describes"):
            parse_header(header, len(header) + size)
    for old, new in ((b"[4,8]", b"[3,7]"), (b"[4,8]", b"[0,4]"), (b"[4,8]", b"[5,9]")):
        with pytest.raises(ValueError, match="gap"):
            parse_header(header.replace(old, new), len(header) + 8)


@pytest.mark.parametrize(
    ("name", "entry", "tensors"),
    [
        ("index.safetensors", "index", {"representatives": torch.zeros(3, 9, 1, 2, 4)}),
        ("index.safetensors", "index", {"representatives": torch.zeros(3, 10, 1, 2, 4, dtype=torch.int32)}),
        ("index.safetensors", "index", {"head_keys": torch.zeros(3, 10, 1, 2, 4)}),
        ("tokens.safetensors", "token_file", {"ids": torch.zeros(38, dtype=torch.int32)}),
    ],
)
def test_forged_small_files(folder: Path, name: str, entry: str, tensors: dict[str, torch.Tensor]) -> None:
    written = write_tensors(folder / name, tensors)
    forge(folder, put(entry, value=written.model_dump()))
    with DocumentReader(folder) as reader, pytest.raises(StoreDamaged, match=name):
        reader.tensors(names_in(name))
    assert len(verify_document(folder)) == 1


def test_identity() -> None:
    ours = {"name": "tiny", "weights": "a" * 64, "dtype": "float32"}
    check_identity(ours, dict(reversed(ours.items())))
    cases = [
        ({**ours, "weights": "b" * 64}, r"weights is aaaaaaaaaaaaaaaaaa…aaaaaaaaaaaa in the store and bbb"),
        ({**ours, "weights": "b", "name": "other"}, "name is tiny in the store and other here"),
        ({"name": "tiny", "dtype": "float32"}, "weights is a.* in the store and absent here"),
        ({**ours, "config": "c"}, "config is absent in the store and c here"),
    ]
    for theirs, message in cases:
        with pytest.raises(IdentityMismatch, match=message):
            check_identity(ours, theirs)


def test_what_the_writer_writes_can_always_be_loaded(folder: Path) -> None:
    manifest = load_manifest(folder)
    assert isinstance(manifest, Manifest)
    assert encode(manifest) == (folder / "manifest.json").read_bytes()
    assert json.loads(encode(manifest))["density"][1] == 1 / 3
