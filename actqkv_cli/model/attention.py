"""The two seams by which our attention enters an unpatched Hugging Face model.

1. An attention function registered under the name "actqkv": a name that has no mask function, so no mask is made.
2. A rotary module that rotates nothing, so that queries and keys arrive un-rotated; `Rotary` keeps the family's own
   cos and sin, by which our attention rotates at positions that it chooses.

State travels in a `Cache` whose `update` hands the attention function a `Handle` instead of the keys.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from actqkv_cli.errors import UsageError
from actqkv_kernels.paged_attention import rotated

NAME = "actqkv"


@dataclass(frozen=True)
class AttentionCall:
    """What a model's layer says about one call of its attention."""

    scaling: float
    rotates: bool  # False in a layer without positions (SmolLM3)
    sliding_window: int | None


class AttentionLayer(Protocol):
    """One layer of ours: takes the window's un-rotated projections, returns the attended values `(H, W, d)`."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        """query: `(H, W, d)`; key, value: `(Hkv, W, d)`."""
        ...


@dataclass(frozen=True)
class Handle:
    """What the attention function receives in the place of the keys."""

    layers: tuple[AttentionLayer, ...]  # one for each row of the batch
    key: Tensor  # (B, Hkv, W, d)
    lengths: Sequence[int] | None  # tokens of each row, from its end, that are no padding


class _CacheLayer(CacheLayerMixin):
    """The shape of a cache that transformers asks for; positions are ours, so the lengths it tells do not matter."""

    def __init__(self, layers: tuple[AttentionLayer, ...], lengths: Sequence[int] | None) -> None:
        super().__init__()
        self.layers = layers
        self.lengths = lengths

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        pass

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Handle, Tensor]:
        return Handle(self.layers, key_states, self.lengths), value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


def attention_cache(*rows: Sequence[AttentionLayer], lengths: Sequence[int] | None = None) -> Cache:
    """A transformers cache that carries our layers, those of each row of a batch, to our attention function.

    lengths: how many tokens of each row are no padding, for rows padded on the left.
    """
    return Cache(layers=[_CacheLayer(layers, lengths) for layers in zip(*rows, strict=True)])


def feed(module: PreTrainedModel, ids: Tensor, cache: Cache, **options: Any) -> Any:
    """The output of a model, or of its decoder, for tokens `(B, W)` and a cache of `attention_cache`."""
    return module(input_ids=ids, use_cache=True, **{_cache_argument(type(module).forward): cache}, **options)


@functools.cache
def _cache_argument(forward: Callable[..., Any]) -> str:
    # transformers renamed it in 5.24, and warns of the old name.
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor | Handle,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    if not isinstance(key, Handle):
        raise TypeError("the actqkv attention runs only with a cache made by attention_cache()")
    if query.shape[0] != len(key.layers) or attention_mask is not None:
        raise ValueError("the actqkv attention takes one sequence for each row of its cache, and no mask")
    call = AttentionCall(
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        rotates=bool(getattr(module, "use_rope", True)),
        sliding_window=sliding_window,
    )
    rows = zip(key.layers, query, key.key, value, strict=True)
    if key.lengths is None:
        out = torch.stack([layer.attend(q, k, v, call) for layer, q, k, v in rows])
    else:
        out = torch.zeros_like(query)
        for row, length, (layer, q, k, v) in zip(out, key.lengths, rows, strict=True):
            row[:, -length:] = layer.attend(q[:, -length:], k[:, -length:], v[:, -length:], call)
    return out.transpose(1, 2), None  # (B, W, H, d)


class _Unrotated(nn.Module):
    """A rotary module of angle zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor, position_ids: Tensor | None = None, **_: Any) -> tuple[Tensor, Tensor]:
        return x.new_ones((1, 1, self.width)), x.new_zeros((1, 1, self.width))


class Rotary:
    """A model family's own rotation, as cos and sin by position; attention factors are included.

    zero_is_identity: whether position 0 is left as it is. Raises UsageError for a rotation that does not turn a head's
    halves (RoFormer, arXiv 2104.09864, section 3.4.2).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        decoder = model.model
        self._module = decoder.rotary_emb
        self._like = torch.empty(0, dtype=model.dtype, device=model.device)
        self._cos, self._sin = self._table(1024)
        self.width = 2 * self._cos.shape[1]
        self.zero_is_identity = bool((self._cos[0] == 1).all() and (self._sin[0] == 0).all())
        attention = type(decoder.layers[0].self_attn)
        if not self._equals(sys.modules[attention.__module__].apply_rotary_pos_emb):
            raise UsageError(f"the rotary positions of {attention.__name__} do not turn a head's halves")

    @property
    def device(self) -> torch.device:
        return self._like.device

    def halves(self, stop: int) -> tuple[Tensor, Tensor]:
        """cos and sin by position, fp32 `(>= stop, d / 2)`."""
        if stop > len(self._cos):
            self._cos, self._sin = self._table(2 * stop)
        return self._cos, self._sin

    def _table(self, length: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(length, device=self._like.device)[None]
        with torch.inference_mode():
            cos, sin = self._module(self._like, positions)
        half = cos.shape[-1] // 2
        return cos[0, :, :half].float().contiguous(), sin[0, :, :half].float().contiguous()

    def _equals(self, apply: Callable[..., tuple[Tensor, Tensor]]) -> bool:
        """Whether a family's function does as `rotated` with these tables."""
        x = torch.randn((2, 8, self.width), generator=torch.Generator().manual_seed(0)).to(self._like)
        cos, sin = (torch.cat([table[:8], table[:8]], dim=-1).to(x)[None] for table in (self._cos, self._sin))
        family, _ = apply(x[None], x[None], cos, sin)
        ours = rotated(x, torch.arange(8, device=x.device), (self._cos, self._sin))
        return torch.allclose(ours, family[0], atol=0.05 if x.element_size() == 2 else 1e-5)


@contextmanager
def actqkv_attention(model: PreTrainedModel) -> Iterator[Rotary]:
    """Put the two seams on a model, and take them off again whatever happens. Yields the model's own rotation."""
    AttentionInterface.register(NAME, _attention)
    decoder = model.model
    rotary, implementation = decoder.rotary_emb, model.config._attn_implementation
    ours = Rotary(model)
    try:
        decoder.rotary_emb = _Unrotated(ours.width)
        model.set_attn_implementation(NAME)
        yield ours
    finally:
        decoder.rotary_emb = rotary
        model.set_attn_implementation(implementation)


@contextmanager
def first_layers(model: PreTrainedModel, count: int) -> Iterator[None]:
    """Let the model run only its first `count` layers."""
    decoder = model.model
    layers = decoder.layers
    try:
        decoder.layers = layers[:count]
        yield
    finally:
        decoder.layers = layers
