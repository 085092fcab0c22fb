"""The first invariant: with every token attended at its true position, the answer is that of stock transformers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from actqkv_cli.model.causal_lm import AttentionCall, CausalLM
from actqkv_cli.model.config import parse_config
from actqkv_cli.model.quiet import quiet_transformers
from actqkv_cli.model.rotary import Rotary
from actqkv_cli.model.stock import stock_model
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


def change_calls(family: str, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    for layer in tiny.model(family).model.layers:
        attention: Any = layer.self_attn
        monkeypatch.setattr(attention, "call", replace(attention.call, **changes))


@pytest.mark.parametrize("family", ["mistral-sliding", "qwen2-sliding"])
def test_the_comparison_notices_a_lost_sliding_window(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_calls(family, monkeypatch, sliding_window=None)
    assert difference(family, tmp_path / "document", "full") > 1e-2


def test_the_comparison_notices_rotation_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_calls("smollm3", monkeypatch, rotates=True)
    assert difference("smollm3", tmp_path / "document", "full") > 1e-2


def test_beyond_the_first_table_of_angles() -> None:
    """Rotary computes its angles for 1,024 positions at first, and more when they are asked for."""
    model = tiny.model("yarn")
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    rotary = Rotary(model)
    for start in (0, 1022, 5000, 70):
        cos, sin = stock_model(model).model.rotary_emb(x, torch.arange(start, start + 3)[None])
        half = torch.cat([-x[..., 8:], x[..., :8]], dim=-1)
        tables = rotary.halves(start + 3)
        torch.testing.assert_close(rotated(x, torch.arange(start, start + 3), tables), x * cos + half * sin)


def test_position_0_is_left_as_it_is_but_for_a_factor() -> None:
    assert Rotary(tiny.model("llama")).zero_is_identity
    assert not Rotary(tiny.model("yarn")).zero_is_identity


class Dense:
    """Attention of one call to its own tokens."""

    def __init__(self, rotary: Rotary) -> None:
        self.rotary = rotary

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        places = torch.arange(query.shape[1])
        if call.rotates:
            halves = (table[places].to(query) for table in self.rotary.halves(len(places)))
            cos, sin = (torch.cat([half, half], dim=-1) for half in halves)
            half = query.shape[-1] // 2
            query, key = (x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin for x in (query, key))
        distance = places[:, None] - places
        seen = (distance >= 0) & (distance < (call.sliding_window or len(places)))
        key, value = (x.repeat_interleave(len(query) // len(x), dim=0) for x in (key, value))
        scores = (query @ key.mT * call.scaling).masked_fill(~seen, float("-inf"))
        return scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value


def config(family: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": family, **tiny.SMALL, **changes}


NO_HEAD_DIM = {key: value for key, value in tiny.SMALL.items() if key != "head_dim"} | {"hidden_size": 64}
NO_LENGTH = {key: value for key, value in tiny.LLAMA3.items() if key != "original_max_position_embeddings"}
VARIANTS: dict[str, dict[str, Any]] = {
    **tiny.CONFIGS,
    "tied": config("llama", tie_word_embeddings=True),
    "llama-biases": config("llama", attention_bias=True, mlp_bias=True),
    "llama-all-heads": config("llama", num_key_value_heads=None),
    "llama-theta": config("llama", rope_theta=100.0),  # as before transformers 5
    "llama-scaling": config("llama", rope_theta=100.0, rope_scaling={"type": "linear", "factor": 4.0}),
    "llama3-length": config("llama", rope_parameters=NO_LENGTH),
    "yarn-told": config("llama", rope_parameters={**tiny.YARN, "attention_factor": 0.7, "truncate": False}),
    "yarn-scales": config("llama", rope_parameters={**tiny.YARN, "mscale": 0.7, "mscale_all_dim": 1.2}),
    "yarn-betas": config("llama", rope_parameters={**tiny.YARN, "beta_fast": 8.0, "beta_slow": 2.0}),
    "yarn-short": config("llama", rope_parameters={**tiny.YARN, "factor": 0.5}),
    "qwen3-biases": config("qwen3", attention_bias=True),
    "qwen3-sliding": config("qwen3", **tiny.SLIDING, max_window_layers=1),
    "qwen2-layers": config("qwen2", **tiny.SLIDING, layer_types=["sliding_attention", "full_attention"] * 2),
    "smollm3": config("smollm3"),
    "smollm3-sliding": config("smollm3", **tiny.SLIDING),
    "smollm3-listed": config("smollm3", sliding_window=20, layer_types=["sliding_attention"] * 4),
    "smollm3-biases": config("smollm3", attention_bias=True, mlp_bias=True),
    "smollm3-layers": config("smollm3", no_rope_layers=[1, 0, 0, 1]),
    "qwen2-head-dim": {"model_type": "qwen2", **NO_HEAD_DIM},
    "qwen3-head-dim": {"model_type": "qwen3", **NO_HEAD_DIM},
    "smollm3-head-dim": {"model_type": "smollm3", **NO_HEAD_DIM},
    "mistral-head-dim": {"model_type": "mistral", **NO_HEAD_DIM, "head_dim": None},
    "epsilon": config("qwen3", rms_norm_eps=0.1),
    # What a family does not know of has no meaning in its config.
    "qwen2-stray": config("qwen2", attention_bias=False, mlp_bias=True),
    "mistral-stray": config("mistral", attention_bias=True, mlp_bias=True, use_sliding_window=False, sliding_window=20),
    "qwen3-stray": config("qwen3", mlp_bias=True),
    "llama-stray": config("llama", sliding_window=20),
}


def variant(name: str, dtype: torch.dtype = torch.float32) -> CausalLM:
    """A model whose every parameter matters: biases too are random."""
    torch.manual_seed(2)
    model = CausalLM(parse_config(VARIANTS[name]), dtype)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, 0.0, 0.2)
    return model.requires_grad_(False)


def by_transformers_alone(name: str, model: CausalLM) -> Any:
    """The model's weights in one that transformers made of the same config."""
    with quiet_transformers():
        config = AutoConfig.for_model(**VARIANTS[name])
        stock = AutoModelForCausalLM.from_config(config, dtype=model.dtype, attn_implementation="eager")
    stock.load_state_dict(model.state_dict())
    return stock.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_transformers(name: str, dtype: torch.dtype) -> None:
    model = variant(name, dtype)
    ids = tiny.tokens(90).view(2, 45)
    ours = model(ids, [[Dense(Rotary(model))] * 4] * 2)
    stock = by_transformers_alone(name, model)
    expected = stock(ids, use_cache=False).logits
    assert expected.std() > 0.1
    assert torch.equal(ours, expected)


def test_cos_and_sin_are_rounded_to_the_type_of_the_model() -> None:
    """As in its training, also where a kernel computes in fp32."""
    for table in Rotary(variant("llama", torch.bfloat16)).halves(100):
        assert torch.equal(table, table.bfloat16().float())


def test_stock_shares_the_weights_and_leaves_the_model_as_it_was() -> None:
    model = variant("tied")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    stock = stock_model(model)
    places = {weight.data_ptr() for weight in model.parameters()}
    assert {weight.data_ptr() for weight in stock.parameters()} == places
    assert not any(weight.requires_grad for weight in stock.parameters())
    assert stock.lm_head.weight is stock.model.embed_tokens.weight
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert stock_model(model).config is not stock.config  # in which it keeps settings of its own


def test_padding_before_a_row_changes_nothing() -> None:
    model = variant("llama")
    ids = tiny.tokens(30)
    rows = [[Dense(Rotary(model))] * 4] * 2
    padded = torch.stack([ids[:20], torch.cat([torch.zeros(8, dtype=torch.int64), ids[:12]])])
    found = model(padded, rows, lengths=[20, 12])
    torch.testing.assert_close(found[1, 8:], model(ids[None, :12], rows[:1])[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0], model(ids[None, :20], rows[:1])[0], atol=1e-5, rtol=0)


def test_the_last_logits_and_the_first_layers_alone() -> None:
    model = variant("llama")
    ids = tiny.tokens(30)[None]
    rows = [[Dense(Rotary(model))] * 4]
    torch.testing.assert_close(model(ids, rows, keep=3), model(ids, rows)[:, -3:], atol=1e-5, rtol=0)
    caught: list[Tensor] = []
    model.model.layers[1].register_forward_hook(lambda module, given, out: caught.append(out))
    whole = model.hidden_states(ids, rows)
    assert torch.equal(model.hidden_states(ids, [rows[0][:2]], depth=2), caught[0])
    assert not torch.equal(whole, caught[0])


@pytest.mark.parametrize("count", [3, 5])
def test_every_layer_needs_attention_of_its_own(count: int) -> None:
    model = variant("llama")
    with pytest.raises(ValueError, match="zip"):
        model(tiny.tokens(9)[None], [[Dense(Rotary(model))] * count])


@pytest.mark.parametrize(("rows", "batch"), [(1, 2), (2, 1), (3, 2)])
def test_every_sequence_needs_attention_of_its_own(rows: int, batch: int) -> None:
    model = variant("llama")
    with pytest.raises(ValueError, match="attention for"):
        model(tiny.tokens(9).repeat(batch, 1), [[Dense(Rotary(model))] * 4] * rows)
