"""Which models run on our attention."""

from collections.abc import Mapping
from typing import Any

from actqkv_cli.errors import UsageError

# The families that the tests compare with stock transformers, logit by logit. Others are refused by name:
# some have no rotary positions, or a state instead of a cache, and would be answered wrongly in silence.
SUPPORTED = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
# dynamic and longrope take their frequencies from the longest position of each call.
SUPPORTED_ROPE = ("default", "linear", "llama3", "yarn")


def refuse_unfit(config: Mapping[str, Any]) -> None:
    """Raises UsageError when a model with this config.json cannot run on our attention, naming what it is."""
    family = str(config.get("model_type", "unnamed"))
    hint = f"supported are models of type {', '.join(SUPPORTED)}, in full precision"
    if family not in SUPPORTED:
        raise UsageError(f"models of type {family} are not supported", hint)
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list):
        raise UsageError("the model's config says no architectures", hint)
    if architectures and not any(str(name).endswith("ForCausalLM") for name in architectures):
        raise UsageError(f"{architectures[0]} is not a language model that answers", hint)
    if (activation := config.get("hidden_act", "silu")) not in ("silu", "swish"):  # two names of one
        raise UsageError(f"{family} with the activation {activation} is not supported", hint)
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
        raise UsageError(f"quantized weights ({method or 'unnamed'}) are not supported", hint)
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rope, Mapping) or any(isinstance(value, Mapping) for value in rope.values()):
        raise UsageError(f"{family} with rotary positions that differ by layer is not supported", hint)
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in SUPPORTED_ROPE:
        raise UsageError(f"{family} with {rope_type} rotary positions is not supported", hint)
