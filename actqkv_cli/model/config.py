"""A model's config.json, with what its family means where the file is silent."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from actqkv_cli.errors import UsageError
from actqkv_cli.model.shape import Shape
from actqkv_cli.model.supported import refuse_unfit

_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"eos_token_id": 2},
    "mistral": {"sliding_window": 4096, "eos_token_id": 2},
    "qwen2": {"sliding_window": 4096},
    "qwen3": {"sliding_window": 4096, "head_dim": 128},
    "smollm3": {"tie_word_embeddings": True, "rope_theta": 2e6, "eos_token_id": 128_001},
}
_Count = Annotated[int, Field(gt=0, lt=1 << 31)]
_Positive = Annotated[float, Field(gt=0)]
_Theta = Annotated[float, Field(gt=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, validate_default=True)


class Rope(_Strict):
    """Rotary positions as they are, by `model.rotary`; the classes below scale them."""

    rope_type: Literal["default"]
    rope_theta: _Theta


class LinearRope(_Strict):
    rope_type: Literal["linear"]
    rope_theta: _Theta
    factor: _Positive


class Llama3Rope(_Strict):
    rope_type: Literal["llama3"]
    rope_theta: _Theta
    factor: _Positive
    low_freq_factor: _Positive
    high_freq_factor: _Positive
    original_max_position_embeddings: _Positive

    @model_validator(mode="after")
    def _check(self) -> "Llama3Rope":
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError("low_freq_factor must be less than high_freq_factor")
        return self


class YarnRope(_Strict):
    rope_type: Literal["yarn"]
    rope_theta: _Theta
    factor: _Positive
    original_max_position_embeddings: _Positive
    attention_factor: float | None = None
    beta_fast: _Positive = 32.0
    beta_slow: _Positive = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


class ModelConfig(_Strict):
    """What a model of the supported families depends on, under the names that config.json gives it."""

    model_type: str
    vocab_size: _Count
    hidden_size: _Count
    intermediate_size: _Count
    num_hidden_layers: _Count
    num_attention_heads: _Count
    num_key_value_heads: _Count = Field(default_factory=lambda told: told["num_attention_heads"])
    head_dim: _Count = Field(default_factory=lambda told: told["hidden_size"] // told["num_attention_heads"])
    max_position_embeddings: _Count
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: _Count | None = None
    max_window_layers: int = 28
    layer_types: list[Literal["full_attention", "sliding_attention"]] | None = None
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: _Count = 4
    rope_parameters: Annotated[Rope | LinearRope | Llama3Rope | YarnRope, Field(discriminator="rope_type")]
    eos_token_id: int | list[int] | None = None

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        for told in (self.layer_types, self.no_rope_layers):
            if told is not None and len(told) < self.num_hidden_layers:
                raise ValueError("it lists fewer layers than there are")
        if self.head_dim % 2 or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("head_dim must be even, and num_attention_heads a multiple of num_key_value_heads")
        return self

    def rotates(self, layer: int) -> bool:
        """Whether positions count in this layer."""
        if self.model_type != "smollm3":
            return True
        if self.no_rope_layers is None:
            return (layer + 1) % self.no_rope_layer_interval != 0
        return bool(self.no_rope_layers[layer])

    def window(self, layer: int) -> int | None:
        """Tokens that this layer looks back, if it does not look at all."""
        if self.model_type == "llama":
            return None
        if self.model_type == "mistral":
            return self.sliding_window
        if self.layer_types is not None:
            slides = self.layer_types[layer] == "sliding_attention"
        elif self.model_type == "smollm3":
            slides = self.use_sliding_window and not self.rotates(layer)
        else:
            slides = layer >= self.max_window_layers
        return self.sliding_window if slides else None

    @property
    def shape(self) -> Shape:
        return Shape(
            hidden=self.hidden_size,
            intermediate=self.intermediate_size,
            layers=self.num_hidden_layers,
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            vocabulary=self.vocab_size,
            window=self.max_position_embeddings,
            tied=self.tie_word_embeddings,
        )


def parse_config(source: Mapping[str, Any]) -> ModelConfig:
    """Of a config.json. Raises UsageError for a model that our attention cannot run, and for a config that is none."""
    refuse_unfit(source)
    told = _DEFAULTS.get(source["model_type"], {}) | {
        name: value for name, value in source.items() if value is not None or name == "sliding_window"
    }
    if told["model_type"] in ("qwen2", "qwen3") and not told.get("use_sliding_window"):
        told["sliding_window"] = None
    rope = told.get("rope_scaling") or told.get("rope_parameters") or {}  # two names of one
    length = told.get("original_max_position_embeddings")
    told["rope_parameters"] = {
        "rope_type": rope.get("type", "default"),
        "rope_theta": told.get("rope_theta", 10_000.0),
        "original_max_position_embeddings": told.get("max_position_embeddings"),
        **rope,
        **({"original_max_position_embeddings": length} if length else {}),
    }
    try:
        return ModelConfig.model_validate(told)
    except ValidationError as error:
        first = error.errors()[0]
        reason = ": ".join([*map(str, first["loc"]), first["msg"]])
        raise UsageError(f"the model's config cannot be used: {reason}") from error
