"""The supported families as one decoder, whose attention is a caller's.

Written here, although transformers has them: to import it takes longer than to import torch, and its calls change with
its releases. Parameters have its names. `model.stock` is the same weights run by transformers, with which
the tests compare every family, logit by logit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from actqkv_cli.model.config import ModelConfig


@dataclass(frozen=True)
class AttentionCall:
    """What a layer of the model says about its attention."""

    scaling: float
    rotates: bool  # False in a layer without positions (SmolLM3)
    sliding_window: int | None


class AttentionLayer(Protocol):
    """One layer's attention over one sequence: takes the window's un-rotated projections, returns the attended values
    `(H, W, d)`."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        """query: `(H, W, d)`; key, value: `(Hkv, W, d)`."""
        ...


class CausalLM(nn.Module):
    """The weights are whatever was in memory: load them, or `draw_weights`."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.config = config
        self.model = _Decoder(config, dtype)
        self.lm_head = _Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Let the output head be the embedding, if the config says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def draw_weights(self) -> None:
        """Random matrices, and ones elsewhere."""
        for weight in self.parameters():
            nn.init.normal_(weight, 0.0, 0.02) if weight.dim() > 1 else nn.init.ones_(weight)

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.lm_head.weight.dtype

    def hidden_states(
        self,
        ids: Tensor,
        rows: Sequence[Sequence[AttentionLayer]],
        lengths: Sequence[int] | None = None,
        depth: int | None = None,
    ) -> Tensor:
        """Feed tokens `(B, W)` to the first `depth` layers, or to all: `(B, W, hidden)`, before the last norm.

        rows: for each sequence, an attention for each of these layers; lengths: how many tokens of each sequence, from
        its end, are no padding. Raises ValueError for too few or too many of either.
        """
        if len(rows) != len(ids):
            raise ValueError(f"attention for {len(rows)} sequences, and tokens of {len(ids)}")
        hidden = self.model.embed_tokens(ids)
        for layer, attentions in zip(islice(self.model.layers, depth), zip(*rows, strict=True), strict=True):
            hidden = layer(hidden, attentions, lengths)
        return hidden

    def forward(
        self,
        ids: Tensor,
        rows: Sequence[Sequence[AttentionLayer]],
        lengths: Sequence[int] | None = None,
        keep: int = 0,
    ) -> Tensor:
        """Logits `(B, keep, V)` at the last tokens, or at all. The rest as for `hidden_states`."""
        hidden = self.hidden_states(ids, rows, lengths)[:, -keep:]
        return self.lm_head(self.model.norm(hidden))


class _Decoder(nn.Module):
    def __init__(self, config: ModelConfig, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.embed_tokens = _Embedding(config.vocab_size, config.hidden_size, dtype=dtype)
        self.layers = nn.ModuleList(_Layer(config, number, dtype) for number in range(config.num_hidden_layers))
        self.norm = _RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)


class _Layer(nn.Module):
    def __init__(self, config: ModelConfig, number: int, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.self_attn = _Attention(config, number, dtype)
        self.mlp = _MLP(config, dtype)
        self.input_layernorm = _RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.post_attention_layernorm = _RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)

    def forward(self, hidden: Tensor, attentions: Sequence[AttentionLayer], lengths: Sequence[int] | None) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), attentions, lengths)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class _Attention(nn.Module):
    """What the families differ in is all here."""

    def __init__(self, config: ModelConfig, number: int, dtype: torch.dtype | None) -> None:
        super().__init__()
        family, hidden, heads = config.model_type, config.hidden_size, config.num_attention_heads
        self._dim = dim = config.head_dim
        told = family in ("llama", "qwen3", "smollm3")  # of the others a config may say it too, and means nothing
        biased = config.attention_bias if told else family == "qwen2"
        self.q_proj = _Linear(hidden, heads * dim, biased, dtype=dtype)
        self.k_proj = _Linear(hidden, config.num_key_value_heads * dim, biased, dtype=dtype)
        self.v_proj = _Linear(hidden, config.num_key_value_heads * dim, biased, dtype=dtype)
        self.o_proj = _Linear(heads * dim, hidden, biased and told, dtype=dtype)
        normed = family == "qwen3"
        self.q_norm = _RMSNorm(dim, config.rms_norm_eps, dtype) if normed else nn.Identity()
        self.k_norm = _RMSNorm(dim, config.rms_norm_eps, dtype) if normed else nn.Identity()
        self.call = AttentionCall(
            scaling=dim**-0.5,
            rotates=config.rotates(number),
            sliding_window=config.window(number),
        )

    def forward(self, hidden: Tensor, attentions: Sequence[AttentionLayer], lengths: Sequence[int] | None) -> Tensor:
        split = (*hidden.shape[:-1], -1, self._dim)
        query = self.q_norm(self.q_proj(hidden).view(split)).transpose(1, 2)  # (B, H, W, d)
        key = self.k_norm(self.k_proj(hidden).view(split)).transpose(1, 2)
        value = self.v_proj(hidden).view(split).transpose(1, 2)
        rows = zip(attentions, query, key, value, strict=True)
        if lengths is None:
            out = torch.stack([layer.attend(q, k, v, self.call) for layer, q, k, v in rows])
        else:
            out = torch.zeros_like(query)
            for row, length, (layer, q, k, v) in zip(out, lengths, rows, strict=True):
                row[:, -length:] = layer.attend(q[:, -length:], k[:, -length:], v[:, -length:], self.call)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, config: ModelConfig, dtype: torch.dtype | None) -> None:
        super().__init__()
        hidden, wide = config.hidden_size, config.intermediate_size
        biased = config.model_type in ("llama", "smollm3") and config.mlp_bias
        self.gate_proj = _Linear(hidden, wide, biased, dtype=dtype)
        self.up_proj = _Linear(hidden, wide, biased, dtype=dtype)
        self.down_proj = _Linear(wide, hidden, biased, dtype=dtype)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class _Linear(nn.Linear):
    def reset_parameters(self) -> None:
        """Leave them as they are: weights are loaded, and to draw them for nothing takes two seconds of imports."""


class _Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        """As for `_Linear`."""


class _RMSNorm(nn.Module):
    """In fp32 but for the product with the weight, as the families were trained: torch's own rounds otherwise."""

    def __init__(self, width: int, epsilon: float, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype))
        self._epsilon = epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        wide = hidden.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self._epsilon)
        return self.weight * wide.to(hidden.dtype)
