"""Rotation by position: the cosines and sines of a model, by which our attention rotates at positions it chooses."""

from typing import Any

import torch
from torch import Tensor

from actqkv_cli.model.causal_lm import CausalLM


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


def frequencies(config: Any) -> tuple[Tensor, float]:
    """Angle per position, fp32 `(d / 2,)` (RoFormer, arXiv 2104.09864, section 3.4.2); the factor of cos and sin."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = config.rope_parameters["rope_type"]
    if kind != "default":
        return ROPE_INIT_FUNCTIONS[kind](config)
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, dim, 2).float() / dim), 1.0
