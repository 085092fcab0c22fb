"""A GGUF file, converted once to the safetensors folder that is loaded ever after."""

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from actqkv_cli.errors import ActqkvError, DiskFull, OutOfMemory, UsageError
from actqkv_cli.model.files import WEIGHTS, Progress, first_line, out_of_space

_SOURCE = "model.gguf"
_CHUNK = 1 << 22  # values that are converted at once
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # GGUF's kinds of token
_NAMED_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

# Llama 3 and Qwen 2 split text alike but for how many digits may stay together.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGITS = {"llama-bpe": "{1,3}", "qwen2": "", "deepseek-r1-qwen": ""}


def converted(path: Path, models: Path, digest: str, progress: Progress | None = None) -> Path:
    """The folder below `models` that holds the GGUF file's model; `digest` is the file's sha256."""
    folder = converted_folder(models, path, digest)
    return made_once(folder, lambda scratch: convert_gguf(path, scratch / "model", progress))


def converted_folder(models: Path, path: Path, digest: str) -> Path:
    return models / f"{path.stem}-{digest[:12]}"


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`; when it is not there, what `make(scratch)` leaves in scratch / "model", whole or not at all.

    One process makes it while others wait. Raises DiskFull, and what `make` raises.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = folder.parent / f".{folder.name}.part"
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if folder.is_dir():
            return folder
        shutil.rmtree(scratch, ignore_errors=True)  # left by a process that was killed
        try:
            scratch.mkdir()
            make(scratch)
            _flush(scratch / "model")
            (scratch / "model").rename(folder)
        except OSError as error:
            if not out_of_space(error):
                raise
            raise DiskFull(f"no space left for the model in {folder.parent}") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def convert_gguf(path: Path, target: Path, progress: Progress | None = None) -> None:
    """Writes the GGUF file's model to the new folder `target`, as bfloat16 safetensors, with its tokenizer.

    The files are the same bytes for the same GGUF, but for the version of transformers in config.json.
    Raises UsageError when it is no GGUF file, or one whose model or tokenizer cannot be kept as it is.
    """
    from actqkv_cli.model.load import is_out_of_memory, quiet_transformers, refuse_unfit

    size = path.stat().st_size
    done = 0

    def converted(more: int) -> None:
        nonlocal done
        done = min(done + more, size)
        if progress is not None:
            progress("convert", done, size)

    converted(0)
    header = _read_header(path)
    refuse_unfit({"model_type": header["general.architecture"]})
    _refuse_scaled_rotary(header)
    # Alone in its folder: transformers would also read a config or a tokenizer that happens to lie beside it.
    source = target.with_name("source")
    source.mkdir()
    (source / _SOURCE).symlink_to(path.resolve())
    try:
        with quiet_transformers():
            _convert_weights(source, target, converted)
            _convert_tokenizer(source, header, target)
    except (ActqkvError, OSError):
        raise
    except Exception as error:  # transformers raises whatever the file's oddity leads to
        if is_out_of_memory(error):
            raise OutOfMemory(f"converting {path.name} needs more memory than there is") from error
        if out_of_space(error):
            raise DiskFull(f"no space left to convert {path.name}") from error
        raise UsageError(f"{path.name} cannot be converted: {first_line(error)}") from error
    converted(size)


def _read_header(path: Path) -> dict[str, Any]:
    """The file's metadata, with the names of its tensors under "tensors"."""
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
    return header


def _refuse_scaled_rotary(header: dict[str, Any]) -> None:
    # transformers drops both ways in which a GGUF file says so, and would go wrong on long texts.
    family = header["general.architecture"]
    scaling = header.get(f"{family}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in header["tensors"]:
        raise UsageError(
            "the GGUF file scales its rotary positions, which is lost in conversion",
            "give the model's original repository or folder, with safetensors",
        )


def _convert_weights(source: Path, target: Path, progress: Callable[[int], None]) -> None:
    """One tensor after the other: transformers would hold the whole model, parts of it several times over."""
    import gguf
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from actqkv_cli.model.load import refuse_unfit

    reader = gguf.GGUFReader(source / _SOURCE)
    config = AutoConfig.from_pretrained(source, gguf_file=_SOURCE, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    tensors = _matched(model, reader)
    if "lm_head.weight" in tensors and _equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]):
        # An output layer that is the embeddings' copy; one that is quantized more finely stays what it is.
        del tensors["lm_head.weight"]
        model.config.tie_word_embeddings = True
    target.mkdir()
    with (target / WEIGHTS).open("wb") as file:
        file.write(_safetensors_header({name: _shape(tensor) for name, tensor in tensors.items()}))
        for name in sorted(tensors):
            for rows in _bfloat16_rows(tensors[name], _heads_to_reorder(name, reader, config)):
                file.write(rows)
            progress(tensors[name].n_bytes)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(target)
    model.generation_config.save_pretrained(target)
    config_file = target / "config.json"
    written = json.loads(config_file.read_text(encoding="utf-8"))
    written = {key: value for key, value in written.items() if not key.startswith("_")}
    refuse_unfit(written)
    _write_json(config_file, written)


def _matched(model: Any, reader: Any) -> dict[str, Any]:
    """The file's tensors by the names of the model's parameters. Raises UsageError when one is not there or unfit."""
    import gguf

    family = reader.fields["general.architecture"].contents()
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    present = {tensor.name: tensor for tensor in reader.tensors}
    found = {}
    for name, parameter in model.named_parameters():  # a tied head once
        tensor = present.get(names.get_name(name, (".weight", ".bias")))
        if tensor is None or _shape(tensor) != list(parameter.shape):
            raise UsageError(f"the GGUF file has no {name} of shape {list(parameter.shape)}")
        found[name] = tensor
    return found


def _shape(tensor: Any) -> list[int]:
    return [int(size) for size in reversed(tensor.shape)]


def _equal(one: Any, other: Any) -> bool:
    import numpy

    return one.tensor_type == other.tensor_type and numpy.array_equal(one.data, other.data)


def _heads_to_reorder(name: str, reader: Any, config: Any) -> int:
    """How many heads the tensor has whose rows llama.cpp keeps in another order; 0: none."""
    if reader.fields["general.architecture"].contents() != "llama":
        return 0
    if ".q_proj." in name:
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if ".k_proj." in name else 0


def _bfloat16_rows(tensor: Any, heads: int) -> Iterator[Any]:
    """The tensor's values as bfloat16 bytes, some rows at a time. heads: see `_heads_to_reorder`."""
    import gguf
    import torch

    step = len(tensor.data) if heads else max(1, _CHUNK // max(1, tensor.n_elements // len(tensor.data)))
    for start in range(0, len(tensor.data), step):
        values = torch.from_numpy(gguf.dequantize(tensor.data[start : start + step], tensor.tensor_type).copy())
        if heads:  # the rotated pairs lie side by side there, and half a head apart here
            values = values.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        yield values.bfloat16().contiguous().view(torch.uint8).numpy()


def _safetensors_header(shapes: dict[str, list[int]]) -> bytes:
    """For tensors of bfloat16 that follow by name, as safetensors itself writes it."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name in sorted(shapes):
        end = place + 2 * math.prod(shapes[name])
        entries[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [place, end]}
        place = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def _convert_tokenizer(source: Path, header: dict[str, Any], target: Path) -> None:
    kind = header["tokenizer.ggml.model"]
    if kind == "gpt2":
        byte_level_tokenizer(header).save(str(target / "tokenizer.json"))
    elif kind == "llama":
        _sentencepiece_tokenizer(source).save(str(target / "tokenizer.json"))
    else:
        raise UsageError(f"the GGUF file has a tokenizer of type {kind}, which is not supported")
    tokens = header["tokenizer.ggml.tokens"]
    named = {name: header.get(f"tokenizer.ggml.{key}_token_id") for name, key in _NAMED_TOKENS.items()}
    settings = {name: tokens[number] for name, number in named.items() if number is not None}
    _write_json(target / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **settings})
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


def _sentencepiece_tokenizer(source: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_SOURCE, local_files_only=True)
    return tokenizer.backend_tokenizer


def _flush(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
