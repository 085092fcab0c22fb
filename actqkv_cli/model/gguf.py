"""A GGUF file, converted once to the safetensors folder that is loaded ever after."""

import re
from pathlib import Path
from typing import Any

from actqkv_cli.errors import ActqkvError, DiskFull, OutOfMemory, UsageError, first_line, out_of_memory, out_of_space
from actqkv_cli.model.atomic import make_once
from actqkv_cli.model.files import write_json
from actqkv_cli.model.quiet import quiet_transformers
from actqkv_cli.model.supported import refuse_unfit
from actqkv_cli.progress import Progress, silent

_SOURCE = "model.gguf"
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # GGUF's kinds of token
_NAMED_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

# Llama 3 and Qwen 2 split text alike but for how many digits may stay together.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGITS = {"llama-bpe": "{1,3}", "qwen2": "", "deepseek-r1-qwen": ""}


def convert_once(path: Path, models: Path, digest: str, progress: Progress = silent) -> Path:
    """The folder below `models` that holds the GGUF file's model; `digest` is the file's sha256."""
    folder = converted_folder(models, path, digest)
    return make_once(folder, lambda scratch: convert_gguf(path, scratch / "model", progress))


def converted_folder(models: Path, path: Path, digest: str) -> Path:
    """Where below `models` the model of a GGUF file is, once converted; `digest` is the file's sha256."""
    return models / f"{path.stem}-{digest[:12]}"


def convert_gguf(path: Path, target: Path, progress: Progress = silent) -> None:
    """Writes the GGUF file's model to the new folder `target`, as bfloat16 safetensors, with its tokenizer.

    The files are the same bytes for the same GGUF, but for the version of transformers in config.json.
    Raises UsageError when it is no GGUF file, or one whose model or tokenizer cannot be kept as it is.
    """
    from transformers import AutoConfig

    from actqkv_cli.model.gguf_weights import write_weights

    size = path.stat().st_size
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done = min(done + more, size)
        progress("convert", done, size)

    advance(0)
    reader, header = _read(path)
    refuse_unfit({"model_type": header["general.architecture"]})
    _refuse_scaled_rotary(header)
    # Alone in its folder: transformers would also read a config or a tokenizer that happens to lie beside it.
    source = target.with_name("source")
    source.mkdir()
    (source / _SOURCE).symlink_to(path.resolve())
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(source, gguf_file=_SOURCE, local_files_only=True)
            refuse_unfit(write_weights(reader, config, target, advance))
            _convert_tokenizer(source, header, target)
    except (ActqkvError, OSError):
        raise
    except Exception as error:  # transformers raises whatever the file's oddity leads to
        if out_of_memory(error):
            raise OutOfMemory(f"converting {path.name} needs more memory than there is") from error
        if out_of_space(error):
            raise DiskFull(f"no space left to convert {path.name}") from error
        raise UsageError(f"{path.name} cannot be converted: {first_line(error)}") from error
    advance(size)


def _read(path: Path) -> tuple[Any, dict[str, Any]]:
    """The file's `gguf.GGUFReader`, and its metadata, with the names of its tensors under "tensors"."""
    import gguf

    if _PART.search(path.name):
        raise UsageError(f"{path.name} is part of a split GGUF file", "join it: llama-gguf-split --merge")
    try:
        reader = gguf.GGUFReader(path)
        header = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise UsageError(f"{path.name} is not a whole GGUF file: {first_line(error)}") from error
    header["tensors"] = {tensor.name for tensor in reader.tensors}
    for needed in ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.tokens"):
        if needed not in header:
            raise UsageError(f"{path.name} is not a GGUF file of a language model: it has no {needed}")
    return reader, header


def _refuse_scaled_rotary(header: dict[str, Any]) -> None:
    # transformers drops both ways in which a GGUF file says so, and would go wrong on long texts.
    family = header["general.architecture"]
    scaling = header.get(f"{family}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in header["tensors"]:
        raise UsageError(
            "the GGUF file scales its rotary positions, which is lost in conversion",
            "give the model's original repository or folder, with safetensors",
        )


def _convert_tokenizer(source: Path, header: dict[str, Any], target: Path) -> None:
    from transformers import AutoTokenizer

    kind = header["tokenizer.ggml.model"]
    if kind == "gpt2":
        byte_level_tokenizer(header).save(str(target / "tokenizer.json"))
    elif kind == "llama":
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_SOURCE, local_files_only=True)
        tokenizer.backend_tokenizer.save(str(target / "tokenizer.json"))
    else:
        raise UsageError(f"the GGUF file has a tokenizer of type {kind}, which is not supported")
    tokens = header["tokenizer.ggml.tokens"]
    named = {name: header.get(f"tokenizer.ggml.{key}_token_id") for name, key in _NAMED_TOKENS.items()}
    settings = {name: tokens[number] for name, number in named.items() if number is not None}
    write_json(target / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **settings})
    if template := header.get("tokenizer.chat_template"):
        (target / "chat_template.jinja").write_text(template, encoding="utf-8")


def byte_level_tokenizer(header: dict[str, Any]) -> Any:
    """The `tokenizers.Tokenizer` that the GGUF metadata describes.

    Built here because transformers takes GPT-2's way of splitting text for SmolLM2's, and differs by version.
    Raises UsageError when the file's way of splitting text is not among those known here.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    split = header.get("tokenizer.ggml.pre", "unnamed")
    words = header["tokenizer.ggml.tokens"]
    kinds = header.get("tokenizer.ggml.token_type", [_NORMAL] * len(words))
    vocabulary = {word: n for n, (word, kind) in enumerate(zip(words, kinds, strict=True)) if kind != _UNUSED}
    merges = [tuple(merge.split(" ")) for merge in header["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=split == "llama-bpe"))
    if split == "smollm":
        steps = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    elif split in _DIGITS:
        pattern = Regex(_SPLIT.format(digits=_DIGITS[split]))
        steps = [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    else:
        raise UsageError(
            f"the GGUF file splits text in a way that is not known here: {split}",
            "give the model's original repository or folder, with safetensors",
        )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if split in ("qwen2", "deepseek-r1-qwen"):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    for word, kind in zip(words, kinds, strict=True):
        if kind == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True)])
        elif kind == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(word, normalized=False, special=False)])
    return tokenizer
