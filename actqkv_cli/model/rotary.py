"""Rotation by position: the cosines and sines of a model, by which our attention rotates at positions it chooses."""

import math

import torch
from torch import Tensor

from actqkv_cli.model.causal_lm import CausalLM
from actqkv_cli.model.config import LinearRope, Llama3Rope, ModelConfig, YarnRope


class Rotary:
    """cos and sin by position, as a model's config asks for; attention factors are included.

    zero_is_identity: whether position 0 is left as it is.
    """

    def __init__(self, model: CausalLM) -> None:
        self.device = model.device
        self._dtype = model.dtype
        self._frequencies, self._factor = frequencies(model.config)
        self._cos, self._sin = self._table(1024)
        self.zero_is_identity = bool((self._cos[0] == 1).all() and (self._sin[0] == 0).all())

    def halves(self, stop: int) -> tuple[Tensor, Tensor]:
        """cos and sin by position, fp32 `(>= stop, d / 2)`."""
        if stop > len(self._cos):
            self._cos, self._sin = self._table(2 * stop)
        return self._cos, self._sin

    def _table(self, length: int) -> tuple[Tensor, Tensor]:
        angles = torch.arange(length, device=self.device).float()[:, None] * self._frequencies.to(self.device)
        # Rounded to the model's type, as in its training.
        cos, sin = ((turned * self._factor).to(self._dtype).float() for turned in (angles.cos(), angles.sin()))
        return cos, sin


def frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """Angle per position, fp32 `(d / 2,)` (RoFormer, arXiv 2104.09864, section 3.4.2); the factor of cos and sin.

    To the last bit what transformers computes.
    """
    rope, dim = config.rope_parameters, config.head_dim
    radii = rope.rope_theta ** (torch.arange(0, dim, 2).float() / dim)  # tokens to a radian
    match rope:
        case LinearRope():
            return 1.0 / radii / rope.factor, 1.0
        case Llama3Rope():
            return _llama3(1.0 / radii, rope), 1.0
        case YarnRope():
            return _yarn(radii, rope)
    return 1.0 / radii, 1.0


def _llama3(plain: Tensor, rope: Llama3Rope) -> Tensor:
    """Slow angles are divided by `factor`, fast ones kept, those between in part: as Llama 3.1's code does, whose paper
    (arXiv 2407.21783, section 3.2) gives the base alone."""
    turns = rope.original_max_position_embeddings / (2 * math.pi / plain)
    kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = kept.clamp(0, 1)
    return (1 - kept) * plain / rope.factor + kept * plain


def _yarn(radii: Tensor, rope: YarnRope) -> tuple[Tensor, float]:
    """YaRN, arXiv 2309.00071, sections 3.2 (NTK by parts) and 3.4 (the factor of attention)."""

    def pair_that_turns(times: float) -> float:
        around = rope.original_max_position_embeddings / (times * 2 * math.pi)
        return len(radii) * math.log(around) / math.log(rope.rope_theta)

    low, high = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * len(radii) - 1)
    stretched = (torch.arange(len(radii)).float() - low) / (high - low or 0.001)
    kept = 1 - stretched.clamp(0, 1)
    angles = 1.0 / (rope.factor * radii) * (1 - kept) + 1.0 / radii * kept
    if rope.attention_factor is not None:
        return angles, rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return angles, _sharpening(rope.factor, rope.mscale) / _sharpening(rope.factor, rope.mscale_all_dim)
    return angles, _sharpening(rope.factor, 1.0)


def _sharpening(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
