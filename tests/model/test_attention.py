"""The first invariant: with every token attended at its true position, the answer is that of stock transformers."""

import sys
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from actqkv_cli.errors import UsageError
from actqkv_cli.model import attention
from actqkv_cli.model.attention import Rotary, actqkv_attention, attention_cache, feed, first_layers
from actqkv_kernels.paged_attention import rotated

DOCUMENT, QUESTION, ANSWER = 157, 11, 4  # the document ends within a block
TOLERANCE = 1e-4


@pytest.fixture(params=sorted(tiny.CONFIGS))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def difference(
    family: str, folder: Path, policy: str, window: int = 32, prefill: str = "windowed", budget: int | None = None
) -> float:
    """The largest difference between ours and stock, over the question's last token and each of the answer's."""
    model = tiny.model(family)
    ids = tiny.tokens(DOCUMENT + QUESTION + ANSWER)
    document, asked, answer = ids.split([DOCUMENT, QUESTION, ANSWER])
    how = tiny.reading(window=window, prefill=prefill)
    if not folder.exists():
        tiny.ingest(model, document, folder, how, tiny.HEADS, segment_tokens=max(32, window))
    with tiny.opened(model, folder, budget) as session:
        ours = tiny.answer_logits(session, asked, policy, answer)
    stock = tiny.stock_logits(model, ids, ANSWER + 1)
    assert stock.std() > 0.1  # a model that says nothing would agree with anything
    return float((ours - stock).abs().max())


def test_all_attended_equals_stock(family: str, tmp_path: Path) -> None:
    largest = max(
        difference(family, tmp_path / f"windows-of-{window}", policy, window)
        for window in (32, 64, 256)
        for policy in ("full", "actqkv", "heads")
    )
    print(f"{family}: largest difference to stock {largest:.1e}")
    assert largest < TOLERANCE


def test_full_prefill_equals_stock(family: str, tmp_path: Path) -> None:
    assert difference(family, tmp_path / "full", "full", window=64, prefill="full") < TOLERANCE


@pytest.mark.parametrize("family", ["llama3-rope", "yarn", "linear"])
def test_the_comparison_notices_another_rotation(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, with the scaling of the positions left out: if this passed, the test above would be worth nothing."""
    table = Rotary(tiny.model("llama"))._table
    monkeypatch.setattr(Rotary, "_table", lambda self, length: table(length))
    assert difference(family, tmp_path / "document", "full") > 1e-2


def test_the_comparison_notices_a_lost_block(tmp_path: Path) -> None:
    """One of the 15 between sink and local window."""
    budget = tiny.SINK + tiny.LOCAL + 14 * tiny.BLOCK
    assert difference("llama", tmp_path / "document", "streaming", budget=budget + tiny.BLOCK) < TOLERANCE
    assert difference("llama", tmp_path / "document", "streaming", budget=budget) > 1e-2


@pytest.mark.parametrize("family", ["mistral-sliding", "qwen2-sliding"])
def test_the_comparison_notices_a_lost_sliding_window(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = attention.AttentionCall
    monkeypatch.setattr(attention, "AttentionCall", lambda **call: real(**{**call, "sliding_window": None}))
    assert difference(family, tmp_path / "document", "full") > 1e-2


def test_the_comparison_notices_rotation_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = attention.AttentionCall
    monkeypatch.setattr(attention, "AttentionCall", lambda **call: real(**{**call, "rotates": True}))
    assert difference("smollm3", tmp_path / "document", "full") > 1e-2


def test_beyond_the_first_table_of_angles() -> None:
    """Rotary computes its angles for 1,024 positions at first, and more when they are asked for."""
    model = tiny.model("yarn")
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    rotary = Rotary(model)
    for start in (0, 1022, 5000, 70):
        cos, sin = model.model.rotary_emb(x, torch.arange(start, start + 3)[None])
        half = torch.cat([-x[..., 8:], x[..., :8]], dim=-1)
        tables = rotary.halves(start + 3)
        torch.testing.assert_close(rotated(x, torch.arange(start, start + 3), tables), x * cos + half * sin)


def test_a_rotation_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one of neighbouring channels: it would be answered wrongly."""
    model = tiny.model("llama")
    module = sys.modules[type(model.model.layers[0].self_attn).__module__]

    def interleaved(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return q * cos + torch.stack([-q[..., 1::2], q[..., ::2]], dim=-1).flatten(-2) * sin, k

    monkeypatch.setattr(module, "apply_rotary_pos_emb", interleaved)
    with pytest.raises(UsageError, match="halves"):
        Rotary(model)


class _Raises:
    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: attention.AttentionCall) -> Tensor:
        raise RuntimeError("in the middle of a layer")


def test_the_model_is_as_before_even_after_a_failure(family: str) -> None:
    model, ids = tiny.model(family), tiny.tokens(40)
    before = tiny.stock_logits(model, ids, 40)
    rotary, implementation = model.model.rotary_emb, model.config._attn_implementation
    layers = model.model.layers
    with (
        pytest.raises(RuntimeError, match="in the middle"),
        actqkv_attention(model),
        first_layers(model, 2),
        torch.inference_mode(),
    ):
        feed(model, ids[None], attention_cache([_Raises()] * 4))
    assert model.model.rotary_emb is rotary
    assert model.config._attn_implementation == implementation
    assert model.model.layers is layers
    assert torch.equal(tiny.stock_logits(model, ids, 40), before)


def test_the_model_is_as_before_after_a_session(tmp_path: Path) -> None:
    model, ids = tiny.model("llama"), tiny.tokens(60)
    before = tiny.stock_logits(model, ids, 60)
    difference("llama", tmp_path / "document", "heads")
    assert torch.equal(tiny.stock_logits(model, ids, 60), before)


def test_our_attention_runs_only_on_our_cache() -> None:
    """Without it there would be no rotation: better an error than a wrong answer."""
    model, ids = tiny.model("llama"), tiny.tokens(9)
    with actqkv_attention(model), torch.inference_mode():
        with pytest.raises(TypeError, match="attention_cache"):
            model(ids[None], use_cache=False)
        for rows, batch in ((1, 2), (2, 1), (3, 2)):
            cache = attention_cache(*[[_Raises()] * 4] * rows)
            with pytest.raises(ValueError, match="one sequence for each row"):
                feed(model, ids.repeat(batch, 1), cache)
