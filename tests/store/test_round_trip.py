"""What is written is what is read, in the same bytes every time, and any safetensors reader can open it."""

import random
from pathlib import Path
from typing import Any, Literal

import pytest
import store_sample
import torch
import xxhash
from safetensors.torch import load_file

from actqkv_cli.store import files, jsonfile
from actqkv_cli.store.manifest import load_manifest
from actqkv_cli.store.reader import DocumentReader
from actqkv_cli.store.verify import verify_document
from actqkv_cli.store.writer import DocumentWriter


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_everything_comes_back(tmp_path: Path, dtype: Literal["float32", "bfloat16", "float16"]) -> None:
    sample = store_sample.make(dtype)
    manifest = sample.finish(tmp_path)
    assert manifest == load_manifest(sample.folder(tmp_path))
    assert [segment.blocks for segment in manifest.segments] == [4, 4, 2]
    assert sample.everything_equal(sample.folder(tmp_path))
    assert verify_document(sample.folder(tmp_path)) == []


def test_the_same_document_gives_the_same_bytes(tmp_path: Path) -> None:
    names = ["a", "b"]
    for name in names:
        store_sample.make().finish(tmp_path / name)
    one, other = (store_sample.contents(store_sample.make().folder(tmp_path / name)) for name in names)
    assert one == other
    assert sorted(one) == [
        "index.safetensors",
        "kv-00000.safetensors",
        "kv-00001.safetensors",
        "kv-00002.safetensors",
        "manifest.json",
        "methods.safetensors",
        "text.txt",
        "tokens.safetensors",
    ]


def test_format_1_is_what_it_was(folder: Path) -> None:
    # A change of these means that stores on people's disks become unreadable: give it a new format number.
    digests = {name: xxhash.xxh3_64_hexdigest(data) for name, data in store_sample.contents(folder).items()}
    assert digests["kv-00000.safetensors"] == "76404eb74c609556"
    assert digests["tokens.safetensors"] == "cf289dfa29844774"
    assert digests["index.safetensors"] == "3b1f659ff5b5a9a2"
    assert digests["methods.safetensors"] == "dd88a86b95844457"
    assert digests["manifest.json"] == "471880503cc3a005"


def test_a_document_of_before_there_were_methods(sample: store_sample.Sample, tmp_path: Path) -> None:
    """Its manifest has neither of the two later fields, and still loads; so does all else."""
    sample.methods = {}
    sample.finish(tmp_path)
    path = sample.folder(tmp_path) / "manifest.json"
    body: dict[str, Any] = jsonfile.read(path)[0]
    assert body.pop("methods") is None
    assert body["reading"].pop("baselines") is False
    path.write_bytes(jsonfile.encode(body))
    assert xxhash.xxh3_64_hexdigest(path.read_bytes()) == "7bd93cf71e0e5bcd"  # the manifest as it was then
    assert sorted(store_sample.contents(path.parent)) == [
        "index.safetensors", *(f"kv-0000{number}.safetensors" for number in range(3)),
        "manifest.json", "text.txt", "tokens.safetensors",
    ]  # fmt: skip
    assert sample.everything_equal(path.parent)
    assert verify_document(path.parent) == []
    assert load_manifest(path.parent).methods is None


def test_a_layer_list_a_view_and_a_tensor_are_stored_alike(
    sample: store_sample.Sample, folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other" / sample.draft.id
    with DocumentWriter.open(other, sample.draft) as writer:
        for number in range(3):
            part = slice(number * 4, number * 4 + sample.draft.blocks_of(number))
            turned = [layer[part].transpose(1, 2).contiguous().transpose(1, 2) for layer in sample.blocks]
            writer.write_segment(turned, sample.representatives[:, part].clone().requires_grad_())
        writer.commit(sample.text, sample.tensors)
    assert store_sample.contents(other) == store_sample.contents(folder)


def test_files_are_safetensors_for_everyone(sample: store_sample.Sample, folder: Path) -> None:
    segment = load_file(folder / "kv-00001.safetensors")
    assert set(segment) == {"layers.0", "layers.1", "layers.2", "checksums", "representatives"}
    for layer in range(3):
        assert torch.equal(segment[f"layers.{layer}"], sample.blocks[layer, 4:8])
    assert torch.equal(segment["representatives"], sample.representatives[:, 4:8])
    digest = xxhash.xxh3_64_intdigest(sample.blocks[2, 5].numpy().tobytes())
    assert int(segment["checksums"][2, 1]) % 2**64 == digest
    assert store_sample.same(load_file(folder / "index.safetensors"), sample.index)
    assert store_sample.same(load_file(folder / "tokens.safetensors"), sample.tokens)
    assert store_sample.same(load_file(folder / "methods.safetensors"), sample.methods)


def test_the_data_of_a_segment_begins_on_a_page(folder: Path) -> None:
    data = (folder / "kv-00000.safetensors").read_bytes()
    assert (8 + int.from_bytes(data[:8], "little")) % 4096 == 0


def test_any_selection_equals_indexing(sample: store_sample.Sample, folder: Path) -> None:
    choose = random.Random(3)
    with DocumentReader(folder) as reader:
        for _ in range(200):
            layer, count = choose.randrange(3), choose.randrange(11)
            ids = sorted(choose.sample(range(10), count))
            assert torch.equal(reader.read_blocks(layer, ids), sample.blocks[layer, ids])
            assert torch.equal(
                reader.read_blocks(layer, torch.tensor(ids, dtype=torch.int64)), sample.blocks[layer, ids]
            )


def test_one_read_per_run_of_neighbours(
    sample: store_sample.Sample, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    with DocumentReader(folder) as reader:
        reader.read_blocks(0, range(10))
        read = files._read_some
        monkeypatch.setattr(files, "_read_some", lambda *args: (sizes.append(len(args[1])), read(*args))[1])
        reader.read_blocks(0, [0, 1, 2, 3, 4, 6, 8, 9])
    assert [size // 256 for size in sizes] == [4, 1, 1, 2]


@pytest.mark.parametrize("kind", ["short", "portable"])
def test_short_reads_and_the_fallback_of_windows(
    sample: store_sample.Sample, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    portable = files._read_some_portably
    stingy = {
        "short": lambda fd, view, offset: portable(fd, view[: 1 + len(view) // 3], offset),
        "portable": portable,
    }
    monkeypatch.setattr(files, "_read_some", stingy[kind])
    assert sample.everything_equal(folder)


def test_what_read_blocks_refuses(sample: store_sample.Sample, folder: Path) -> None:
    with DocumentReader(folder) as reader:
        for ids in ([3, 3], [4, 2], [-1], [10], [0, 10], [[1, 2]], [1.5]):
            with pytest.raises((ValueError, TypeError)):
                reader.read_blocks(0, ids)  # type: ignore[arg-type]
        for layer in (-1, 3):
            with pytest.raises(ValueError, match="layer"):
                reader.read_blocks(layer, [1])


def test_traffic_is_counted(sample: store_sample.Sample, folder: Path) -> None:
    with DocumentReader(folder) as reader:
        assert reader.bytes_read.blocks == reader.bytes_read.index == 0
        reader.read_blocks(0, [1, 2])
        table = reader.bytes_read.other
        assert table == 4096 + 3 * 4 * 8
        reader.read_blocks(1, [1])
        assert (reader.bytes_read.blocks, reader.bytes_read.other) == (3 * 256, table)
        assert reader.tensors(["head_keys"]).keys() == {"head_keys"}
        assert reader.bytes_read.index == reader.manifest.index.bytes
        assert reader.tensors(["representatives", "l1", "bounds"]).keys() == {"representatives", "l1"}
        assert reader.manifest.methods is not None
        assert reader.bytes_read.index == 2 * reader.manifest.index.bytes + reader.manifest.methods.bytes
        reader.tokens(), reader.tokens()
        assert reader.bytes_read.other == table + reader.manifest.token_file.bytes


def test_many_segments_do_not_need_many_descriptors(
    sample: store_sample.Sample, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actqkv_cli.store.blocks._MAX_OPEN", 1)
    monkeypatch.setattr("actqkv_cli.store.blocks._BATCH", 1)
    with DocumentReader(folder) as reader:
        for _ in range(2):
            assert torch.equal(reader.read_blocks(1, range(10)), sample.blocks[1])
        assert len(reader._blocks._open) == 1
