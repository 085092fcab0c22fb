"""What a config.json means, against what transformers makes of it."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from actqkv_cli.errors import UsageError
from actqkv_cli.model.config import parse_config
from actqkv_cli.model.quiet import quiet_transformers
from actqkv_cli.model.rotary import frequencies

SIZES: dict[str, Any] = {
    "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip
SLIDING = {"use_sliding_window": True, "sliding_window": 20}
STRAY = {"sliding_window": 20, "max_window_layers": 0}  # without what would make them count
KINDS = ["full_attention", "sliding_attention"] * 3
FAMILIES: dict[str, list[dict[str, Any]]] = {
    "llama": [{}, STRAY, {"head_dim": 8}, {"head_dim": None}, {"num_key_value_heads": None}],
    "mistral": [{}, {"sliding_window": None}, {"sliding_window": 20}, {"use_sliding_window": False}],
    "qwen2": [{}, SLIDING, {**SLIDING, "max_window_layers": 2}, {**SLIDING, "layer_types": KINDS}],
    "qwen3": [{}, STRAY, {**SLIDING, "max_window_layers": 0}, {"head_dim": 8}],
    "smollm3": [
        {}, SLIDING, {"sliding_window": 20}, {"no_rope_layer_interval": 2}, {"no_rope_layers": [0, 1] * 3},
        {"sliding_window": 20, "layer_types": KINDS}, {"tie_word_embeddings": False},
    ],
}  # fmt: skip
CONFIGS = [{"model_type": family, **SIZES, **one} for family, several in FAMILIES.items() for one in several]
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 1024}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
ROPES: list[dict[str, Any]] = [
    {},
    {"rope_theta": 1000000},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 3.0}},
    {"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 3}},
    {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "linear", "factor": 2.5}},
    {"rope_parameters": LLAMA3},
    {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 512, "factor": 32}},
    {"rope_parameters": YARN},
    {"rope_parameters": {**YARN, "factor": 1.5}},
    {"rope_parameters": {**YARN, "factor": 0.5}},
    {"rope_parameters": {**YARN, "attention_factor": 0.0}},
    {"rope_parameters": {**YARN, "attention_factor": 1.3}},
    {"rope_parameters": {**YARN, "mscale": 0.7}},
    {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.2}},
    {"rope_parameters": {**YARN, "truncate": False}},
    {"rope_parameters": {**YARN, "beta_fast": 500.0, "beta_slow": 400.0}},  # beyond one end
    {"rope_parameters": {**YARN, "beta_fast": 1e-3, "beta_slow": 1e-9}},  # and the other
    {"rope_parameters": {**YARN, "beta_slow": 1e-6}},
    {"rope_parameters": {**YARN, "beta_fast": 4.0, "beta_slow": 4.0, "truncate": False}},  # no width between
    {"rope_parameters": YARN, "original_max_position_embeddings": 2048},
]


def theirs(config: dict[str, Any]) -> Any:
    with quiet_transformers():
        return AutoConfig.for_model(**config)


@pytest.mark.parametrize("config", CONFIGS)
def test_sizes_and_layers_are_those_of_transformers(config: dict[str, Any]) -> None:
    ours, stock = parse_config(config), theirs(config)
    told = stock.to_dict()
    assert ours.head_dim == (told.get("head_dim") or stock.hidden_size // stock.num_attention_heads)
    for name in ("num_key_value_heads", "tie_word_embeddings", "rms_norm_eps", "eos_token_id"):
        assert getattr(ours, name) == told[name]
    for layer in range(6):
        slides = told["layer_types"][layer] == "sliding_attention" if "layer_types" in told else True
        window = told.get("sliding_window") if slides and ours.model_type != "llama" else None
        assert ours.window(layer) == window
        assert ours.rotates(layer) == bool(told.get("no_rope_layers", [1] * 6)[layer])


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("family", ["llama", "smollm3"])
def test_angles_are_those_of_transformers(family: str, rope: dict[str, Any]) -> None:
    config = {"model_type": family, **SIZES, **rope}
    stock = theirs(config)
    angles, factor = frequencies(parse_config(config))
    kind, theta = stock.rope_parameters["rope_type"], stock.rope_parameters["rope_theta"]
    if kind == "default":
        expected, told = 1.0 / theta ** (torch.arange(0, 16, 2).float() / 16), 1.0
    else:
        expected, told = ROPE_INIT_FUNCTIONS[kind](stock)
    assert torch.equal(angles, expected)
    assert factor == told


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": None},
        {"hidden_size": "64"},
        {"hidden_size": 2, "head_dim": None},
        {"vocab_size": 10**30},
        {"head_dim": 7},
        {"num_key_value_heads": 3},
        {"rms_norm_eps": float("nan")},
        {"layer_types": ["full_attention"] * 5},
        {"layer_types": ["chunked_attention"] * 6},
        {"no_rope_layers": [1] * 5},
        {"architectures": 5},
        {"rope_theta": 1.0},
        {"rope_scaling": [1]},
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}},
        {"rope_parameters": {**LLAMA3, "high_freq_factor": 1}},
        {"rope_parameters": {**YARN, "factor": 0}},
        {"rope_parameters": {**YARN, "rope_theta": None}},
    ],
)
def test_a_config_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_config({"model_type": "qwen2", **SIZES, **changes})
    assert "\n" not in caught.value.message
