"""Tokens and prompts, against transformers over the same files."""

import json
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import torch
from tiny import byte_tokenizer
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from actqkv_cli.errors import UsageError
from actqkv_cli.model.files import ModelFiles
from actqkv_cli.model.load import load_model
from actqkv_cli.model.quiet import quiet_transformers
from actqkv_cli.model.resolve import resolve
from actqkv_cli.model.stock import stock_model
from actqkv_cli.model.tokenizer import load_tokenizer

TEXTS = [
    "In 1988: naïve 你好 👍🏽 , it 's</s>",
    "  spaces \t and\n\n\nlines <|im_start|>user<|im_end|>",
    "10,000 tokens 42nd abc12 x=345.67 Hello wörld, it's",
    "a \u200b zero-width \ufeff mark, e\u0301 and é",
    "",
]
TALK = [
    {"role": "system", "content": "You are brief & <plain>."},
    {"role": "user", "content": "Who built it?\n"},
    {"role": "assistant", "content": "Edda Morrow"},
    {"role": "user", "content": "And when, in “1903”?"},
]
LOOP = "{% for m in messages %}{{ bos_token }}[{{ m.role }}] {{ m.content }}{{ eos_token }}\n{% endfor %}"
CHATS = [
    LOOP,
    LOOP + "{% if add_generation_prompt and not enable_thinking %}\n  [assistant]\n{% endif %}\n  end",
    "{% for m in messages %}\n  {% if loop.index > 2 %}{% break %}{% endif %}\n  {{ m | tojson }}\n{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{{ messages | tojson(indent=2) }}{% if tools %}tools{% endif %}{% if documents is none %}none{% endif %}",
    "{% set s = namespace(n=0) %}{% for m in messages %}{% set s.n = s.n + m.content | length %}{% endfor %}{{ s.n }}",
    "{{ strftime_now(format='%%') }}{{ unk_token is defined }}",
    "{{ add_bos_token is defined }}{{ tokenizer_class is defined }}",
    "{{ messages | tojson(false) }}{{ messages | tojson(true, 2) }}{{ messages | tojson(sort_keys=true) }}",
    "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
]


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    backend = byte_tokenizer()
    backend.enable_truncation(4)  # its last user's
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "tokenizer.json"))
    write_settings(tmp_path)
    return ModelFiles("tiny", tmp_path, {})


def write_settings(folder: Path, **more: Any) -> None:
    eos = {"__type": "AddedToken", "content": "</s>", "lstrip": False}  # both ways in which they are written
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": eos, "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 8, **more}))


def theirs(folder: Path) -> Any:
    with quiet_transformers():
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def check(files: ModelFiles) -> None:
    """Everything that is asked of a tokenizer."""
    ours, stock = load_tokenizer(files), theirs(files.folder)
    assert ours.eos == stock.eos_token_id
    for text in TEXTS:
        with quiet_transformers():
            told = stock(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
            marked = stock(text, add_special_tokens=False, split_special_tokens=False).input_ids
        plain = ours.encode_plain(text)
        assert (plain.ids, plain.offsets) == (told.input_ids, told.offset_mapping)
        assert ours.encode(text) == marked
        assert ours.decode(marked) == stock.decode(marked, skip_special_tokens=True)
    if ours.chat_template:
        told = stock.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        assert ours.render(TALK) == told


def test_tokens_are_those_of_transformers(files: ModelFiles, capfd: pytest.CaptureFixture[str]) -> None:
    check(files)
    assert capfd.readouterr() == ("", "")


def test_a_document_writes_no_token_that_the_settings_call_special(files: ModelFiles) -> None:
    """Whatever tokenizer.json says of it."""
    backend = Backend.from_file(str(files.folder / "tokenizer.json"))
    backend.add_tokens(["<|im_end|>", "<|tool|>", "<|word|>"])
    backend.save(str(files.folder / "tokenizer.json"))
    decoder = {"259": {"content": "<|tool|>", "special": True}, "260": {"content": "<|word|>", "special": False}}
    write_settings(files.folder, eos_token="<|im_end|>", added_tokens_decoder=decoder)
    tokenizer = load_tokenizer(files)
    text = "a<|im_end|>b<|tool|>c"
    assert tokenizer.backend.decode(tokenizer.encode_plain(text).ids) == text
    assert not {258, 259} & {*tokenizer.encode_plain(text).ids}
    assert {258, 259} < {*tokenizer.encode(text)}


@pytest.mark.parametrize("chat", CHATS)
def test_prompts_are_those_of_transformers(files: ModelFiles, chat: str) -> None:
    (files.folder / "chat_template.jinja").write_text(chat)
    check(files)
    (files.folder / "chat_template.jinja").unlink()
    several = [{"name": "tools", "template": "x"}, {"name": "default", "template": chat}]
    write_settings(files.folder, chat_template=several)
    check(files)


@pytest.mark.parametrize(
    ("chat", "words"),
    [
        ("{% for %}", "cannot be read"),
        ("{% break %}", "cannot be read"),
        ("{{ " + "(" * 400 + "1" + ")" * 400 + " }}", "cannot be read"),
        ("{{ raise_exception('roles must alternate') }}", "fails: roles must alternate"),
        ("{{ messages[9].content.x }}", "fails"),
        ("{{ messages.append(1) }}", "fails"),
        ("{{ ''.__class__.__mro__ }}", "fails"),
    ],
)
def test_a_template_that_fails_is_named(files: ModelFiles, chat: str, words: str) -> None:
    (files.folder / "chat_template.jinja").write_text(chat)
    with pytest.raises(UsageError, match=f"the model's chat template {words}") as caught:
        load_tokenizer(files).render(TALK)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tokenizer.json", b'{"model": 1}', "the tokenizer of tiny cannot be read"),
        ("tokenizer_config.json", b"{", "cannot be read as JSON"),
        ("tokenizer_config.json", b"[" * 100_000, "cannot be read as JSON"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": [1]}', "the tokenizer of tiny cannot be read"),
        ("tokenizer_config.json", b'{"chat_template": {"a": "b"}}', "chat_template that is none"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "tools", "template": "x"}]}', "chat_template that is"),
        ("chat_template.jinja", b"\xff\xfe", "cannot be read as text"),
    ],
)
def test_what_is_no_tokenizer_is_refused(files: ModelFiles, file: str, content: bytes, words: str) -> None:
    (files.folder / file).write_bytes(content)
    with pytest.raises(UsageError, match=words) as caught:
        load_tokenizer(files)
    assert "\n" not in caught.value.message


def real(name: str) -> ModelFiles:
    return resolve(name, cache=platformdirs.user_cache_path("actqkv"), offline=False)


@pytest.mark.model
@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b"])
def test_real_models_are_given_what_transformers_would_give_them(name: str) -> None:
    check(real(name))


@pytest.mark.model
def test_the_smallest_model_speaks() -> None:
    loaded = load_model(real("smollm2-135m"))
    tokenizer = loaded.tokenizer
    text = "In 1988, abc12 x=345.67 Hello wörld, it's   你好 👍🏽 naïve\n\n 10,000 tokens\t42nd"
    encoded = tokenizer.encode_plain(text)
    pieces = [text[begin:end] for begin, end in encoded.offsets]
    assert tokenizer.decode(encoded.ids) == text
    assert pieces[:6] == ["In", " ", "1", "9", "8", "8"]
    assert pieces[-5:] == [" tokens", "\t", "4", "2", "nd"]
    assert tokenizer.encode("<|im_start|><|im_end|>") == [1, 2]
    assert tokenizer.eos == 2
    prompt = tokenizer.render([{"role": "user", "content": "What is the capital of France?"}])
    ids = torch.tensor([tokenizer.encode(prompt)], device=loaded.device)
    answer = stock_model(loaded.model).generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=2, pad_token_id=2
    )
    assert tokenizer.decode(answer[0, ids.shape[1] :].tolist()) == "The capital of France is Paris."


@pytest.mark.model
def test_qwens_text_is_split_as_qwens_tokenizer_does() -> None:
    tokenizer = load_tokenizer(real("qwen2.5-coder-0.5b"))
    text = "In 1988, abc12 Hello wörld, it's   你好\n\n 10,000 tokens\t42nd"
    encoded = tokenizer.encode_plain(text)
    assert tokenizer.decode(encoded.ids) == text
    pieces = [text[begin:end] for begin, end in encoded.offsets]
    assert pieces[:10] == ["In", " ", "1", "9", "8", "8", ",", " abc", "1", "2"]
    assert pieces[-5:] == [" tokens", "\t", "4", "2", "nd"]
    assert (tokenizer.encode("<|im_start|><|im_end|>"), tokenizer.eos) == ([151_644, 151_645], 151_645)
    prompt = tokenizer.render([{"role": "user", "content": "Hi"}])
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
