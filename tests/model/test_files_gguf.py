import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import pytest
import torch
import transformers
from safetensors import safe_open
from tokenizers import pre_tokenizers

from actqkv_cli.errors import OutOfMemory, UsageError
from actqkv_cli.model.gguf import byte_level_tokenizer
from actqkv_cli.model.load import load_model
from actqkv_cli.model.resolve import resolve
from actqkv_cli.model.stock import stock_model

WORDS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt", "he", "<|end|>", "<think>"]
KINDS = [1] * (len(WORDS) - 2) + [3, 4]
HEADS, KV_HEADS, LAYERS, WIDTH, INNER = 4, 2, 2, 32, 48

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key projection in llama.cpp's order: the rotated pairs side by side."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()


def write_gguf(
    path: Path, model: Any, *, family: str = "llama", split: str = "smollm", scaled: bool = False, packed: Any = None
) -> Path:
    writer = gguf.GGUFWriter(path, family)
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(WORDS)
    writer.add_token_types(KINDS)
    writer.add_token_merges(["Ġ t", "h e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(WORDS.index("<|end|>"))
    writer.add_chat_template("{{ messages[0].content }}")
    for name, tensor in model.state_dict().items():
        tensor = tensor.float()
        if name.startswith("model.layers."):
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            if part.endswith(("q_proj", "k_proj")):
                tensor = interleaved(tensor, HEADS if part.endswith("q_proj") else KV_HEADS)
            name = f"blk.{layer}.{NAMES[part]}.weight"
        else:
            plain = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
            name = f"{plain[name.removesuffix('.weight')]}.weight"
        values = tensor.contiguous().numpy()
        if packed is not None and name == "token_embd.weight":
            writer.add_tensor(name, gguf.quantize(values, packed), raw_dtype=packed)
        else:
            writer.add_tensor(name, values)
    if scaled:
        writer.add_tensor("rope_freqs.weight", torch.ones(WIDTH // HEADS // 2).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_converted_once(
    tmp_path: Path, model: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", model)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')  # nothing beside the file matters
    (tmp_path / "tokenizer.json").write_text("{}")
    seen: list[tuple[str, int, int]] = []
    files = resolve(str(file), cache=tmp_path / "cache", offline=True, progress=lambda *event: seen.append(event))
    size = file.stat().st_size
    assert ("convert", 0, size) in seen
    assert ("convert", size, size) in seen
    assert files.folder.parent == tmp_path / "cache" / "models"
    assert files.folder.name.startswith("tiny-")
    assert sorted(path.name for path in files.folder.parent.iterdir() if path.suffix != ".lock") == [files.folder.name]

    loaded = load_model(files, dtype="bfloat16", device="cpu")
    weights = loaded.model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    ids = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(0))
    found, expected = stock_model(loaded.model.float())(ids).logits, copy.deepcopy(model).float()(ids).logits
    assert torch.allclose(found, expected, atol=1e-6)
    tokenizer = loaded.tokenizer
    assert tokenizer.decode(tokenizer.encode("the 12 naïve 你<|end|>")) == "the 12 naïve 你"
    assert tokenizer.special["bos_token"] == WORDS[0]
    assert tokenizer.eos == tokenizer.backend.token_to_id("<|end|>") is not None
    assert tokenizer.render([{"role": "user", "content": "x"}]) == "x"
    assert capfd.readouterr() == ("", "")

    monkeypatch.setattr("actqkv_cli.model.gguf.convert_gguf", None)
    assert resolve(str(file), cache=tmp_path / "cache", offline=True) == files


@pytest.mark.parametrize("how", ["absent", "a copy", "another"])
def test_an_output_layer_stays_tied_where_that_is_exact(tmp_path: Path, model: Any, how: str) -> None:
    model = copy.deepcopy(model)
    if how == "absent":
        model.config.tie_word_embeddings = True
        model.tie_weights()
        state = {name: weight for name, weight in model.state_dict().items() if name != "lm_head.weight"}
        file = write_gguf(tmp_path / "tiny.gguf", SimpleNamespace(state_dict=lambda: state))
    else:
        model.lm_head.weight.data = model.model.embed_tokens.weight.data.clone()
        if how == "another":
            model.lm_head.weight.data[0, 0] += 1
        file = write_gguf(tmp_path / "tiny.gguf", model)
    files = resolve(str(file), cache=tmp_path / "cache", offline=True)
    with safe_open(files.folder / "model.safetensors", "pt") as weights:
        assert ("lm_head.weight" in weights.keys()) == (how == "another")  # noqa: SIM118
    assert json.loads((files.folder / "config.json").read_text())["tie_word_embeddings"] == (how != "another")
    loaded = load_model(files, dtype="bfloat16", device="cpu").model
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert torch.equal(loaded.model.embed_tokens.weight, model.model.embed_tokens.weight)


def test_quantized_values_are_those_of_the_file(tmp_path: Path, model: Any) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", model, packed=gguf.GGMLQuantizationType.Q8_0)
    files = resolve(str(file), cache=tmp_path / "cache", offline=True)
    (tensor,) = [tensor for tensor in gguf.GGUFReader(file).tensors if tensor.name == "token_embd.weight"]
    assert tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0
    expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type)).bfloat16()
    assert torch.equal(load_model(files, dtype="bfloat16", device="cpu").model.model.embed_tokens.weight, expected)


def test_a_file_that_lacks_a_tensor_is_refused(tmp_path: Path, model: Any) -> None:
    state = {name: weight for name, weight in model.state_dict().items() if "layers.1.mlp.up" not in name}
    file = write_gguf(tmp_path / "tiny.gguf", SimpleNamespace(state_dict=lambda: state))
    with pytest.raises(UsageError, match=r"has no model\.layers\.1\.mlp\.up_proj\.weight of shape \[48, 32\]"):
        resolve(str(file), cache=tmp_path / "cache", offline=True)


def test_a_conversion_is_the_same_elsewhere(tmp_path: Path, model: Any) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", model)
    one = resolve(str(file), cache=tmp_path / "one", offline=True)
    two = resolve(str(file), cache=tmp_path / "two", offline=True)
    assert one.identity == two.identity
    for path in one.folder.iterdir():
        assert path.read_bytes() == (two.folder / path.name).read_bytes()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"family": "gpt2"}, "models of type gpt2 are not supported"),
        ({"split": "bloom"}, "not known here: bloom"),
        ({"scaled": True}, "scales its rotary positions"),
    ],
)
def test_a_gguf_file_that_would_not_stay_itself_is_refused(
    tmp_path: Path, model: Any, how: dict[str, Any], words: str
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", model, **how)
    with pytest.raises(UsageError, match=words):
        resolve(str(file), cache=tmp_path / "cache", offline=True)
    assert [path.suffix for path in (tmp_path / "cache" / "models").iterdir()] == [".lock"]


def test_a_file_that_is_no_gguf(tmp_path: Path, model: Any) -> None:
    whole = write_gguf(tmp_path / "tiny.gguf", model).read_bytes()
    for n, content in enumerate([b"", b"no", b"not a model " * 99, whole[:60], whole[:5000], whole[:-5000]]):
        file = tmp_path / f"{n}.gguf"
        file.write_bytes(content)
        with pytest.raises(UsageError, match="gguf"):
            resolve(str(file), cache=tmp_path / "cache", offline=True)


def test_a_part_of_a_split_file(tmp_path: Path, model: Any) -> None:
    file = write_gguf(tmp_path / "big-00001-of-00003.gguf", model)
    with pytest.raises(UsageError, match="part of a split GGUF") as caught:
        resolve(str(file), cache=tmp_path / "cache", offline=True)
    assert "--merge" in caught.value.hint


def test_memory_may_run_out(tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(gguf, "dequantize", fail)
    with pytest.raises(OutOfMemory):
        resolve(str(write_gguf(tmp_path / "tiny.gguf", model)), cache=tmp_path / "cache", offline=True)


@pytest.mark.parametrize(
    ("split", "pieces"),
    [
        ("smollm", ["On", "Ġ", "1", "9", "8", "8", "Ġit", "'s", "Ġ", "Ġtwo", "!", "Ċ"]),
        ("llama-bpe", ["On", "Ġ", "198", "8", "Ġit", "'s", "Ġ", "Ġtwo", "!Ċ"]),
        ("qwen2", ["On", "Ġ", "1", "9", "8", "8", "Ġit", "'s", "Ġ", "Ġtwo", "!Ċ"]),
    ],
)
def test_text_is_split_as_the_vocabulary_was_learned(split: str, pieces: list[str]) -> None:
    header = {"tokenizer.ggml.pre": split, "tokenizer.ggml.tokens": WORDS, "tokenizer.ggml.token_type": KINDS}
    tokenizer = byte_level_tokenizer({**header, "tokenizer.ggml.merges": ["Ġ t", "h e"]})
    found = tokenizer.pre_tokenizer.pre_tokenize_str("On 1988 it's  two!\n")
    assert [piece for piece, _ in found] == pieces
    text = "the <think>naïve<|end|>"
    encoded = tokenizer.encode(text)
    assert [WORDS[-2] in encoded.tokens, WORDS[-1] in encoded.tokens] == [True, True]
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text
    assert [text[slice(*span)] for span in encoded.offsets].count("ï") == 2
