import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from actqkv_cli.errors import ModelUnavailable, UsageError
from actqkv_cli.model.files import Digests
from actqkv_cli.model.resolve import resolve

CONFIG = {"model_type": "llama", "hidden_size": 8, "transformers_version": "5.16.0", "dtype": "bfloat16"}


@pytest.fixture(autouse=True)
def _network_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "tokenizer.json", {"model": {"vocab": {"a": 0}}, "truncation": None, "padding": None})
    write_json(folder / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": {"content": "</s>"}})
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def identity(spec: Path | str, cache: Path) -> dict[str, str]:
    found = dict(resolve(str(spec), cache=cache, offline=True).identity)
    del found["name"]
    return found


def shard(folder: Path, **parts: bytes) -> None:
    (folder / "model.safetensors").unlink()
    for name, content in parts.items():
        (folder / f"{name}.safetensors").write_bytes(content)
    index = {"weight_map": {f"tensor.{name}": f"{name}.safetensors" for name in parts}}
    write_json(folder / "model.safetensors.index.json", index)


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    files = resolve(str(folder), cache=tmp_path / "cache", offline=True)
    assert files.folder == folder.resolve()
    assert files.name == files.identity["name"] == str(folder)
    assert set(files.identity) == {"name", "weights", "config", "tokenizer", "chat_template"}
    assert all(len(digest) == 64 for name, digest in files.identity.items() if name != "name")


def test_identity_is_the_same_in_another_folder_and_later(tmp_path: Path) -> None:
    here = make_model(tmp_path / "here")
    there = Path(shutil.copytree(here, tmp_path / "else" / "where"))
    os.utime(there / "model.safetensors", (1, 1))
    assert identity(here, tmp_path / "one") == identity(there, tmp_path / "two")


def changed_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"Weights")


def changed_config(folder: Path) -> None:
    write_json(folder / "config.json", {**CONFIG, "hidden_size": 16})


def changed_vocabulary(folder: Path) -> None:
    write_json(folder / "tokenizer.json", {"model": {"vocab": {"b": 0}}})


def changed_end_token(folder: Path) -> None:
    write_json(folder / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "<end>"})


def changed_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0] }}")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (changed_weights, "weights"),
        (changed_config, "config"),
        (changed_vocabulary, "tokenizer"),
        (changed_end_token, "tokenizer"),
        (changed_template, "chat_template"),
    ],
)
def test_each_field_of_the_identity_tells_its_own_change(tmp_path: Path, change: Any, field: str) -> None:
    before, after = make_model(tmp_path / "before"), make_model(tmp_path / "after")
    change(after)
    old, new = identity(before, tmp_path / "cache"), identity(after, tmp_path / "cache")
    assert [name for name in old if old[name] != new[name]] == [field]


def test_saving_a_model_again_keeps_its_identity(tmp_path: Path) -> None:
    first, second = make_model(tmp_path / "first"), make_model(tmp_path / "second")
    config = {"_name_or_path": "x", "torch_dtype": "float32", "transformers_version": "5.23.0"}
    text = json.dumps({**config, "hidden_size": 8, "model_type": "llama"}, indent=4)
    (second / "config.json").write_text(text)
    vocabulary = {"padding": {"length": 3}, "truncation": None, "model": {"vocab": {"a": 0}}}
    write_json(second / "tokenizer.json", vocabulary)
    write_json(second / "tokenizer_config.json", {"eos_token": "</s>", "bos_token": "<s>", "is_local": True})
    assert identity(first, tmp_path / "cache") == identity(second, tmp_path / "cache")


def test_a_chat_template_may_stand_in_the_tokenizer_config(tmp_path: Path) -> None:
    in_file, inside, listed, none = (make_model(tmp_path / name) for name in "abcd")
    named = [{"name": "tools", "template": "x"}, {"name": "default", "template": "{{ messages }}"}]
    for folder, template in ((inside, "{{ messages }}"), (listed, named), (none, None)):
        (folder / "chat_template.jinja").unlink()
        settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
        write_json(folder / "tokenizer_config.json", settings)
    cache = tmp_path / "cache"
    assert identity(in_file, cache) == identity(inside, cache) == identity(listed, cache)
    assert identity(none, cache)["chat_template"] == ""


def test_every_shard_counts_and_stray_files_do_not(tmp_path: Path) -> None:
    one, two, three = (make_model(tmp_path / name) for name in ("one", "two", "three"))
    shard(one, part1=b"x", part2=b"y")
    shard(two, part1=b"x", part2=b"z")
    shard(three, part1=b"x", part2=b"y")
    (three / "consolidated.safetensors").write_bytes(b"the same again")
    weights = [identity(folder, tmp_path / "cache")["weights"] for folder in (one, two, three)]
    assert weights[0] != weights[1]
    assert weights[0] == weights[2]


def test_a_missing_shard_and_a_path_in_the_index_are_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    shard(folder, part1=b"x", part2=b"y")
    (folder / "part2.safetensors").unlink()
    with pytest.raises(UsageError, match=r"lacks part2\.safetensors"):
        resolve(str(folder), cache=tmp_path, offline=True)
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"t": "../../etc/x.safetensors"}})
    with pytest.raises(UsageError, match="names something other"):
        resolve(str(folder), cache=tmp_path, offline=True)
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(UsageError, match="JSON"):
        resolve(str(folder), cache=tmp_path, offline=True)


@pytest.mark.parametrize(
    ("absent", "words"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", r"no safetensors weights \(pytorch_model.bin is pickle"),
        ("tokenizer.json", "no tokenizer.json"),
    ],
)
def test_a_folder_that_lacks_something_is_refused(tmp_path: Path, absent: str, words: str) -> None:
    folder = make_model(tmp_path / "model")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    (folder / absent).unlink()
    with pytest.raises(UsageError, match=words):
        resolve(str(folder), cache=tmp_path / "cache", offline=True)


def test_an_adapter_is_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="adapter"):
        resolve(str(folder), cache=tmp_path / "cache", offline=True)


@pytest.mark.parametrize("spec", ["/no/such", "./no", "../no", "~/no-such-model", "no.gguf", "a/b/c", "a\\b"])
def test_a_path_that_is_not_there(tmp_path: Path, spec: str) -> None:
    with pytest.raises(UsageError, match="no such model folder or file"):
        resolve(spec, cache=tmp_path, offline=True)


@pytest.mark.parametrize("spec", ["", "gpt2", "org/na me", "org/name@"])
def test_what_names_no_model(tmp_path: Path, spec: str) -> None:
    with pytest.raises(UsageError, match="not a model"):
        resolve(spec, cache=tmp_path, offline=True)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("no model")
    with pytest.raises(UsageError, match=r"not a model folder or a \.gguf file"):
        resolve(str(tmp_path / "book.txt"), cache=tmp_path, offline=True)


# Digests


def test_a_digest_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    file, store = tmp_path / "file", tmp_path / "cache" / "digests.json"
    file.write_bytes(b"one")
    calls: list[tuple[str, int, int]] = []

    def digest() -> str:
        digests = Digests(store)
        found = digests.of_file(file, lambda *event: calls.append(event))
        digests.save()
        return found

    assert digest() == digest() == hashlib.sha256(b"one").hexdigest()
    assert calls == [("hash", 3, 3)]
    file.write_bytes(b"two")
    os.utime(file, (1, 1))
    assert digest() == hashlib.sha256(b"two").hexdigest()
    assert [path.name for path in store.parent.iterdir()] == ["digests.json"]


def test_a_file_is_not_hashed_again_for_a_new_owner_but_for_a_new_inode(tmp_path: Path) -> None:
    file, digests = tmp_path / "file", Digests(tmp_path / "digests.json")
    file.write_bytes(b"one")
    calls: list[tuple[str, int, int]] = []
    digests.of_file(file, lambda *event: calls.append(event))
    file.chmod(0o600)  # changes the inode's own time
    (tmp_path / "link").hardlink_to(file)
    assert digests.of_file(file, lambda *event: calls.append(event)) == hashlib.sha256(b"one").hexdigest()
    assert len(calls) == 1
    before = file.stat()
    other = tmp_path / "other"
    other.write_bytes(b"two")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)  # of the same size and time
    assert digests.of_file(file) == hashlib.sha256(b"two").hexdigest()


def test_what_another_process_has_hashed_meanwhile_is_kept(tmp_path: Path) -> None:
    store = tmp_path / "digests.json"
    one, two = Digests(store), Digests(store)
    for digests, name in ((one, "one"), (two, "two")):
        (tmp_path / name).write_text(name)
        digests.of_file(tmp_path / name)
        digests.save()
    assert len(json.loads(store.read_text())) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"bytes:%s": [1, "x"]}', b'{"bytes:%s": 3}'])
def test_a_damaged_digest_file_is_ignored(tmp_path: Path, content: bytes) -> None:
    file, store = tmp_path / "file", tmp_path / "digests.json"
    file.write_bytes(b"one")
    store.write_bytes(content.replace(b"%s", bytes(file)))
    assert Digests(store).of_file(file) == hashlib.sha256(b"one").hexdigest()


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    identity(make_model(tmp_path / "model"), tmp_path / "cache")


def test_a_file_of_the_hugging_face_cache_is_known_by_its_name(tmp_path: Path) -> None:
    known = "ab" * 32
    blob = tmp_path / "blobs" / known
    blob.parent.mkdir()
    blob.write_bytes(b"never read")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert Digests(tmp_path / "digests.json").of_file(link) == known
    plain = hashlib.sha256(b"never read").hexdigest()
    assert Digests(tmp_path / "digests.json").of_file(blob) == plain


# Hugging Face


class Hub:
    """Stands in for huggingface_hub.snapshot_download: what is cached, and what there is to fetch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.error: Exception | None = None
        self.calls: list[dict[str, Any]] = []

    def __call__(self, repo: str, **wanted: Any) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError

        self.calls.append({"repo": repo, **wanted})
        if wanted.get("local_files_only"):
            if not self.folder.is_dir():
                raise LocalEntryNotFoundError("not here")
            return str(self.folder)
        if self.error is not None:
            raise self.error
        bar = wanted["tqdm_class"](total=10, unit="B", desc="Downloading")
        bar.update(10)
        bar.close()
        if not self.folder.is_dir():
            make_model(self.folder)
        return str(self.folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub(tmp_path / "snapshot")
    monkeypatch.setattr("huggingface_hub.snapshot_download", fake)
    return fake


def test_a_hub_model_is_fetched_once(tmp_path: Path, hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[str, int, int]] = []
    spec = "org/name@v1.0"
    resolve(spec, cache=tmp_path, offline=False, progress=lambda *event: seen.append(event))
    assert ("fetch", 10, 10) in seen
    fetch = hub.calls[-1]
    assert (fetch["repo"], fetch["revision"]) == ("org/name", "v1.0")
    assert not any(pattern.endswith((".bin", ".py", ".pt")) for pattern in fetch["allow_patterns"])
    hub.error = AssertionError("the network was used")
    files = resolve(spec, cache=tmp_path, offline=False)
    assert (files.name, files.folder) == (spec, hub.folder)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_offline_a_hub_model_must_be_here(tmp_path: Path, hub: Hub, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.error = AssertionError("the network was used")
    if how == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelUnavailable, match="not on this machine") as caught:
        resolve("org/name", cache=tmp_path, offline=how == "argument")
    assert caught.value.exit_code == 9
    assert caught.value.hint
    make_model(hub.folder)
    assert resolve("org/name", cache=tmp_path, offline=how == "argument").folder == hub.folder


def test_a_broken_off_download_is_taken_up(tmp_path: Path, hub: Hub) -> None:
    make_model(hub.folder)
    (hub.folder / "model.safetensors").unlink()
    with pytest.raises(ModelUnavailable):
        resolve("org/name", cache=tmp_path, offline=True)
    with pytest.raises(UsageError, match="no safetensors"):  # nor does the hub have them
        resolve("org/name", cache=tmp_path, offline=False)
    assert not hub.calls[-1].get("local_files_only")


def test_a_hub_model_that_cannot_be_fetched(tmp_path: Path, hub: Hub) -> None:
    hub.error = OSError("no route\nand more lines")
    with pytest.raises(ModelUnavailable, match=r"could not be fetched: no route$"):
        resolve("org/name", cache=tmp_path, offline=False)
