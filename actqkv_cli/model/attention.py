"""The two seams by which our attention enters an unpatched Hugging Face model.

1. An attention function registered under the name "actqkv": a name that has no mask function, so no mask is made.
2. A rotary module that rotates nothing, so that queries and keys arrive un-rotated; `Rotary` keeps the family's own
   module and function, and rotates at the positions that our attention chooses.

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

NAME = "actqkv"


@dataclass(frozen=True)
class Call:
    """What a model's layer says about one call of its attention."""

    scaling: float
    rotates: bool  # False in a layer without positions (SmolLM3)
    sliding_window: int | None


class AttentionLayer(Protocol):
    """One layer of ours: takes the window's un-rotated projections, returns the attended values `(H, W, d)`."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
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
    call = Call(
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
    """A model family's own rotation, at positions that we choose.

    in_halves: whether it is the common one (`halves`); zero_is_identity: whether position 0 is left as it is.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        decoder = model.model
        self._module = decoder.rotary_emb
        attention = type(decoder.layers[0].self_attn)
        self._apply = sys.modules[attention.__module__].apply_rotary_pos_emb
        self._like = torch.empty(0, dtype=model.dtype, device=model.device)
        self._cos, self._sin = self._table(1024)
        self._halves = self._like[:0], self._like[:0]
        self.in_halves = self._rotates_in_halves()
        self.zero_is_identity = bool((self._cos[0] == 1).all() and (self._sin[0] == 0).all())

    @property
    def device(self) -> torch.device:
        return self._like.device

    @property
    def width(self) -> int:
        return int(self._cos.shape[-1])

    def _table(self, length: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(length, device=self._like.device)[None]
        with torch.inference_mode():
            cos, sin = self._module(self._like, positions)
        return cos[0], sin[0]

    def __call__(self, x: Tensor, positions: range) -> Tensor:
        """Rotate x `(heads, T, d)` at `positions`, T of them or one for all. Attention factors are included."""
        if self.zero_is_identity and positions == range(1):
            return x
        if positions.stop > len(self._cos):
            self._cos, self._sin = self._table(2 * positions.stop)
        return self._rotate(x, self._cos[positions.start : positions.stop], self._sin[positions.start : positions.stop])

    def halves(self, stop: int) -> tuple[Tensor, Tensor]:
        """cos and sin by position, fp32 `(>= stop, d / 2)`, of a rotation in halves, as the kernels take them."""
        if stop > len(self._cos):
            self._cos, self._sin = self._table(2 * stop)
        if len(self._halves[0]) != len(self._cos):
            half = self.width // 2
            self._halves = self._cos[:, :half].float().contiguous(), self._sin[:, :half].float().contiguous()
        return self._halves

    def at(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotate x `(heads, T, d)` at positions `(T,)` int64, in any order."""
        if positions.numel() and int(positions.max()) >= len(self._cos):
            self._cos, self._sin = self._table(2 * int(positions.max()) + 2)
        return self._rotate(x, self._cos[positions], self._sin[positions])

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return _rotated_in_halves(x, cos, sin) if self.in_halves else self._rotate_as_family(x, cos, sin)

    def _rotates_in_halves(self) -> bool:
        """Whether the family's function is the common one, which can be done in half of the time."""
        x = torch.randn((2, 8, self._cos.shape[1]), generator=torch.Generator().manual_seed(0)).to(self._cos)
        cos, sin = self._cos[:8], self._sin[:8]
        try:
            family = self._rotate_as_family(x, cos, sin)
        except RuntimeError:  # it rotates a part of a head's width
            return False
        return torch.allclose(_rotated_in_halves(x, cos, sin), family, atol=0.05 if x.element_size() == 2 else 1e-5)

    def _rotate_as_family(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rotated, _ = self._apply(x[None], x[None, :1, :1], cos[None], sin[None])
        return rotated[0]


def _rotated_in_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x cos + (-x2, x1) sin, for a head's halves x1 and x2 (RoFormer, arXiv 2104.09864, section 3.4.2)."""
    half = x.shape[-1] // 2
    signed = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
    return torch.addcmul(x * cos, x.roll(half, dims=-1), signed)


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
