import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import byte_tokenizer

from actqkv_cli.errors import OutOfMemory, UsageError
from actqkv_cli.model import load
from actqkv_cli.model.files import ModelFiles
from actqkv_cli.model.load import choose_device, choose_dtype, load_model
from actqkv_cli.model.quiet import quiet_transformers
from actqkv_cli.model.resolve import resolve
from actqkv_cli.model.stock import stock_model
from actqkv_cli.model.supported import SUPPORTED, refuse_unfit


@pytest.fixture
def tiny(tmp_path: Path) -> ModelFiles:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    folder = tmp_path / "tiny"
    with quiet_transformers():
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return resolve(str(folder), cache=tmp_path / "cache", offline=True)


def test_a_model_is_loaded_ready_to_run(tiny: ModelFiles, capfd: pytest.CaptureFixture[str]) -> None:
    loaded = load_model(tiny, dtype="float32", device="cpu")
    assert (loaded.dtype, loaded.device, loaded.files) == ("float32", torch.device("cpu"), tiny)
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    stock = transformers.AutoModelForCausalLM.from_pretrained(tiny.folder, dtype=torch.float32)
    ids = torch.arange(20)[None]
    assert torch.equal(stock_model(loaded.model)(ids).logits, stock(ids).logits)
    assert "Loading" not in capfd.readouterr().out


def test_loading_says_nothing(tiny: ModelFiles, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(tiny)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_come_in_the_type_asked_for(tiny: ModelFiles, dtype: str) -> None:
    loaded = load_model(tiny, dtype=dtype, device="cpu")
    assert loaded.dtype == dtype
    assert {weight.dtype for weight in loaded.model.parameters()} == {getattr(torch, dtype)}


@pytest.mark.parametrize(
    ("generation", "stop"),
    [
        (None, {2, 257}),
        ({}, {2, 257}),
        ({"eos_token_id": None}, {2, 257}),
        ({"eos_token_id": 7}, {7, 257}),
        ({"eos_token_id": [8, 9, None]}, {8, 9, 257}),
    ],
)
def test_a_turn_ends_with_what_the_model_or_its_tokenizer_says(
    tiny: ModelFiles, generation: dict[str, Any] | None, stop: set[int]
) -> None:
    told = tiny.folder / "generation_config.json"
    told.unlink()
    if generation is not None:
        told.write_text(json.dumps(generation))
    assert load_model(tiny, device="cpu").stop_tokens == stop


def test_quiet_transformers_puts_the_settings_back() -> None:
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with contextlib.suppress(ZeroDivisionError), quiet_transformers():
        assert logging.get_verbosity() == logging.ERROR
        assert not logging.is_progress_bar_enabled()
        raise ZeroDivisionError
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_weights_that_do_not_fit_the_config_are_refused(tiny: ModelFiles) -> None:
    file = tiny.folder / "model.safetensors"
    weights = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({key: value for key, value in weights.items() if key != name}, file, {"format": "pt"})
    with pytest.raises(UsageError, match=f"{name} is missing, unknown or of another shape"):
        load_model(tiny)
    extra = "model.layers.0.self_attn.q_proj.bias"
    save_file({**weights, extra: torch.zeros(32)}, file, {"format": "pt"})
    with pytest.raises(UsageError, match=f"{extra} is missing, unknown or of another shape"):
        load_model(tiny)
    old = "model.layers.0.self_attn.rotary_emb.inv_freq"  # in files from before transformers 4.32
    save_file({**weights, old: torch.zeros(4)}, file, {"format": "pt"})
    load_model(tiny)


def test_a_weight_of_another_shape_is_named(tiny: ModelFiles) -> None:
    file, name = tiny.folder / "model.safetensors", "model.layers.0.mlp.up_proj.weight"
    save_file({**load_file(file), name: torch.zeros(48, 31)}, file, {"format": "pt"})
    with pytest.raises(UsageError, match=f"{name} is missing, unknown or of another shape"):
        load_model(tiny)


@pytest.mark.parametrize("how", ["embeddings alone", "head alone", "a copy", "another"])
def test_ends_that_are_tied(tiny: ModelFiles, how: str) -> None:
    """By the config; a head that differs from the embeddings all the same stays what it is, as in transformers."""
    change_config(tiny, tie_word_embeddings=True)
    file = tiny.folder / "model.safetensors"
    weights = load_file(file)
    ends = "model.embed_tokens.weight", "lm_head.weight"
    if how != "another":
        weights[ends[1]] = weights[ends[0]].clone()
    absent = {"embeddings alone": ends[1], "head alone": ends[0]}.get(how)
    save_file({name: weight for name, weight in weights.items() if name != absent}, file, {"format": "pt"})
    model = load_model(tiny, dtype="float32", device="cpu").model
    assert torch.equal(model.model.embed_tokens.weight, weights[ends[0]])
    assert torch.equal(model.lm_head.weight, weights[ends[1]])
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == (how != "another")


def test_a_config_that_cannot_be_is_refused(tiny: ModelFiles) -> None:
    change_config(tiny, hidden_size="32")
    with pytest.raises(UsageError, match="hidden_size"):
        load_model(tiny)


def change_config(files: ModelFiles, **changes: Any) -> None:
    path = files.folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_damaged_weights_are_refused(tiny: ModelFiles) -> None:
    file = tiny.folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UsageError, match="cannot be loaded") as caught:
        load_model(tiny)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        RuntimeError("MPS backend out of memory"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_out_of_memory(tiny: ModelFiles, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(load, "safe_open", fail)
    with pytest.raises(OutOfMemory) as caught:
        load_model(tiny)
    assert caught.value.exit_code == 7
    assert "--dtype" in caught.value.hint


# Devices and types


def test_the_fastest_device_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto").type == "cuda"
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(UsageError, match="no cuda:2 device"):
        choose_device("cuda:2")


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_a_device_that_is_not_here(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match=f"there is no {device} device"):
        choose_device(device)


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x", "meta", "cpu:1"])
def test_an_unknown_device(device: str) -> None:
    with pytest.raises(UsageError, match="unknown device"):
        choose_device(device)


@pytest.mark.parametrize(
    ("device", "native", "dtype"),
    [
        ("cuda", True, "bfloat16"),
        ("cuda", False, "float16"),
        ("mps", True, "float16"),
        ("cpu", True, "bfloat16"),
        ("cpu", False, "float32"),
    ],
)
def test_the_type_suits_the_device(device: str, native: bool, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    monkeypatch.setattr(load, "_cpu_has_bfloat16", lambda: native)
    assert choose_dtype("auto", torch.device(device)) == dtype
    assert choose_dtype("float32", torch.device(device)) == "float32"


def test_an_unknown_type() -> None:
    with pytest.raises(UsageError, match="unknown dtype: int8"):
        choose_dtype("int8", torch.device("cpu"))


# Models that do not fit


@pytest.mark.parametrize("family", SUPPORTED)
@pytest.mark.parametrize("rope", [None, {"rope_type": "llama3"}, {"type": "linear"}, {"rope_theta": 1e4}])
def test_what_is_supported(family: str, rope: dict[str, Any] | None) -> None:
    architectures = ["AnythingForCausalLM"]
    for activation in ("silu", "swish"):
        config = {"model_type": family, "architectures": architectures, "rope_scaling": rope, "hidden_act": activation}
        refuse_unfit(config)


OTHERS = ["gpt2", "bloom", "mpt", "opt", "deepseek_v3", "mamba", "jamba", "falcon_h1", "recurrent_gemma"]
OTHERS += ["qwen3_next", "qwen3_moe", "t5", "llava", "gpt_oss", "gemma2", "gemma3", "phi3"]


@pytest.mark.parametrize("family", OTHERS)
def test_another_architecture_is_refused_by_name(family: str) -> None:
    with pytest.raises(UsageError, match=f"models of type {family} are not supported") as caught:
        refuse_unfit({"model_type": family})
    assert "llama, mistral, qwen2, qwen3, smollm3" in caught.value.hint


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "type unnamed"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantized weights \(awq\)"),
        ({"hidden_act": "gelu"}, "the activation gelu"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "dynamic rotary"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "longrope rotary"),
    ],
)
def test_a_variant_that_does_not_fit_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        refuse_unfit({"model_type": "llama", **config} if config else config)


def test_it_is_refused_before_any_weights_are_read(tiny: ModelFiles) -> None:
    config = tiny.folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "gpt2"}))
    (tiny.folder / "model.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(UsageError, match="gpt2"):
        load_model(tiny)
