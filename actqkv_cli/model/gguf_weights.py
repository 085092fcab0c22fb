"""The weights of a GGUF file as safetensors: the same values in bfloat16, under the names that transformers knows.

A tensor at a time, and of a large one some rows: transformers' own way holds the whole model, and parts of it several
times over, which is more memory than running it takes.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM

from actqkv_cli.errors import UsageError
from actqkv_cli.model.files import WEIGHTS, read_json, write_json
from actqkv_cli.store.header import build_header

_CHUNK = 1 << 22  # values that are converted at once


def write_weights(
    reader: gguf.GGUFReader, config: Any, target: Path, progress: Callable[[int], None]
) -> dict[str, Any]:
    """Writes weights, config and generation config to the new folder `target`; returns what config.json says.

    config: transformers' for this file. progress: is told the bytes of the GGUF file that were converted since.
    Raises UsageError when the file's tensors are not those that the config foresees.
    """
    family = reader.fields["general.architecture"].contents()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    tensors = _matched(model, reader, family)
    head, embeddings = tensors.get("lm_head.weight"), tensors["model.embed_tokens.weight"]
    if head is not None and head.tensor_type == embeddings.tensor_type and np.array_equal(head.data, embeddings.data):
        # An output layer that is the embeddings' copy; one that is quantized more finely stays what it is.
        del tensors["lm_head.weight"]
        model.config.tie_word_embeddings = True
    target.mkdir()
    with (target / WEIGHTS).open("wb") as file:
        described = [(name, "BF16", _shape(tensors[name])) for name in sorted(tensors)]
        file.write(build_header(described, 8, {"format": "pt"}))
        for name in sorted(tensors):
            for rows in _bfloat16_rows(tensors[name], _heads_to_reorder(name, family, config)):
                file.write(rows)
            progress(tensors[name].n_bytes)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(target)
    model.generation_config.save_pretrained(target)
    config_file = target / "config.json"
    written = {key: value for key, value in read_json(config_file).items() if not key.startswith("_")}
    write_json(config_file, written)
    return written


def _matched(model: Any, reader: gguf.GGUFReader, family: str) -> dict[str, Any]:
    """The file's tensors by the names of the model's parameters. Raises UsageError when one is not there or unfit."""
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    present = {tensor.name: tensor for tensor in reader.tensors}
    found = {}
    for name, parameter in model.named_parameters():  # a tied head once
        tensor = present.get(names.get_name(name, (".weight", ".bias")))
        if tensor is None or _shape(tensor) != tuple(parameter.shape):
            raise UsageError(f"the GGUF file has no {name} of shape {list(parameter.shape)}")
        found[name] = tensor
    return found


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape))


def _heads_to_reorder(name: str, family: str, config: Any) -> int:
    """How many heads the tensor has whose rows llama.cpp keeps in another order; 0: none."""
    if family != "llama":
        return 0
    if ".q_proj." in name:
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if ".k_proj." in name else 0


def _bfloat16_rows(tensor: Any, heads: int) -> Iterator[Any]:
    """The tensor's values as bfloat16 bytes, some rows at a time. heads: see `_heads_to_reorder`."""
    step = len(tensor.data) if heads else max(1, _CHUNK // max(1, tensor.n_elements // len(tensor.data)))
    for start in range(0, len(tensor.data), step):
        values = torch.from_numpy(gguf.dequantize(tensor.data[start : start + step], tensor.tensor_type).copy())
        if heads:  # the rotated pairs lie side by side there, and half a head apart here
            values = values.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        yield values.bfloat16().contiguous().view(torch.uint8).numpy()
