"""Synthetic models: true dimensions, ordinary folders, and nothing written where there is no room."""

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from actqkv_cli.errors import DiskFull, OutOfMemory, UsageError
from actqkv_cli.model import choose, synthetic
from actqkv_cli.model.config import parse_config
from actqkv_cli.model.load import load_model
from actqkv_cli.model.resolve import resolve
from actqkv_cli.model.stock import stock_model
from actqkv_cli.model.synthetic import CONFIGS, config_of, synthetic_model

# Parameters as their makers and Hugging Face count them.
PUBLISHED = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
}
SMALL = {**CONFIGS["qwen2.5-0.5b"], "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 1200}
CPU = torch.device("cpu")
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tokenizer that all synthetic models get; there is one called small."""
    monkeypatch.setitem(CONFIGS, "small", SMALL)
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    words = tiny.tokenizer(["the keeper wrote the log of the light"] * 3)
    words.backend.save(str(folder / "tokenizer.json"))
    return folder


def make(tokenizer: Path, models: Path, dtype: str = "float32", **how: Any) -> Path:
    return synthetic_model("small", tokenizer, models, dtype=dtype, device=CPU, **how)


@pytest.mark.parametrize("name", CONFIGS)
def test_dimensions_are_those_of_the_real_model(name: str) -> None:
    config = config_of(name)
    shape = parse_config(config).shape
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == PUBLISHED[name]
    assert shape.parameters == pytest.approx(parameters, rel=1e-3)
    assert config["vocab_size"] >= 49_152  # the default model's, whose tokenizer it gets


def test_it_is_an_ordinary_model_that_computes(tokenizer: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    folder = make(tokenizer, tmp_path / "models", progress=lambda *event: seen.append(event))
    loaded = load_model(resolve(str(folder), cache=tmp_path / "cache", offline=True), dtype="float32", device="cpu")
    ids = torch.tensor([loaded.tokenizer.encode("the keeper wrote the log")])
    logits = stock_model(loaded.model)(ids).logits
    assert logits.isfinite().all()
    assert logits.std() > 0.01  # and not all alike
    assert all(
        loaded.tokenizer.decode([token]).strip() for token in logits[0].argmax(dim=-1).tolist()
    )  # words, all of them
    assert seen[-1][1] == seen[-1][2] == sum(2 * parameter.numel() for parameter in loaded.model.parameters())


def test_it_is_made_once_and_the_same_everywhere(tokenizer: Path, tmp_path: Path) -> None:
    one, two = make(tokenizer, tmp_path / "one"), make(tokenizer, tmp_path / "two")
    assert {path.name: path.read_bytes() for path in one.iterdir()} == {
        path.name: path.read_bytes() for path in two.iterdir()
    }
    times = {path: path.stat().st_mtime_ns for path in one.iterdir()}
    assert make(tokenizer, tmp_path / "one") == one
    assert {path: path.stat().st_mtime_ns for path in one.iterdir()} == times


def test_large_ones_are_written_in_parts(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make(tokenizer, tmp_path / "whole")
    monkeypatch.setattr(synthetic, "_SHARD_BYTES", 20_000)
    parts = make(tokenizer, tmp_path / "parts")
    assert len(list(parts.glob("*.safetensors"))) > 2
    files = [resolve(str(folder), cache=tmp_path / "cache", offline=True) for folder in (whole, parts)]
    first, second = (load_model(one, dtype="float32", device="cpu").model.state_dict() for one in files)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    index = json.loads((parts / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] < sum(path.stat().st_size for path in parts.glob("*.safetensors"))


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match="gpt-2") as caught:
        config_of("gpt-2")
    assert "llama-3.1-8b" in caught.value.hint
    assert config_of("Llama-3.1-8B") == config_of("llama-3.1-8b")


def test_nothing_is_written_where_there_is_no_room(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10_000, 9000, 1000))
    with pytest.raises(DiskFull, match="are free"):
        make(tokenizer, tmp_path / "models")
    assert not list((tmp_path / "models").iterdir())


@pytest.mark.parametrize(("dtype", "fits"), [("float32", False), ("bfloat16", True)])
def test_what_does_not_fit_in_memory_is_not_written(
    dtype: str, fits: bool, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "free_memory", lambda device: 3 * parse_config(SMALL).shape.parameters)
    if fits:
        assert make(tokenizer, tmp_path / "models", dtype).is_dir()
    else:
        with pytest.raises(OutOfMemory, match="memory are free"):
            make(tokenizer, tmp_path / "models", dtype)
        assert not (tmp_path / "models").exists()
