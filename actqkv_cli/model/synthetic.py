"""Random models of well-known shapes: whatever depends only on a model's shape can be measured with no download."""

import shutil
from pathlib import Path
from typing import Any

from actqkv_cli.errors import DiskFull, OutOfMemory, UsageError
from actqkv_cli.model.atomic import make_once
from actqkv_cli.model.config import parse_config
from actqkv_cli.model.files import WEIGHTS_INDEX, write_json
from actqkv_cli.progress import Progress, silent

TOKENIZER = "smollm2-135m"  # the model whose tokenizer they have: that of the smallest vocabulary
_VERSION = 1  # of the weights: a change makes the models anew
_SHARD_BYTES = 1 << 31
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
_RANGE = 0.02  # standard deviation of the matrices, which all of these families begin their training with


def _config(
    family: str, vocabulary: int, widths: tuple[int, int], layers: int, heads: tuple[int, int], head_dim: int,
    window: int, theta: float, tied: bool, epsilon: float = 1e-6, **rope: Any,
) -> dict[str, Any]:  # fmt: skip
    """A config.json. widths: hidden, intermediate; heads: of queries, of keys and values."""
    return {
        "architectures": [{"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[family] + "ForCausalLM"],
        "model_type": family,
        "vocab_size": vocabulary,
        "hidden_size": widths[0],
        "intermediate_size": widths[1],
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": head_dim,
        "max_position_embeddings": window,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta, **rope},
        "tie_word_embeddings": tied,
        "rms_norm_eps": epsilon,
        "hidden_act": "silu",
        "dtype": "bfloat16",
    }


def _llama3(widths: tuple[int, int], layers: int, heads: int, head_dim: int, tied: bool, factor: float) -> Any:
    """Llama 3.1 and 3.2."""
    rope = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 8192
    return _config(
        "llama", 128_256, widths, layers, (heads, 8), head_dim, 131_072, 500_000.0, tied, epsilon=1e-5, **rope
    )


def _qwen2(vocabulary: int, widths: tuple[int, int], layers: int, heads: tuple[int, int], head_dim: int) -> Any:
    tied = vocabulary == 151_936  # the small ones
    return _config("qwen2", vocabulary, widths, layers, heads, head_dim, 32_768, 1e6, tied)


def _qwen3(widths: tuple[int, int], layers: int, heads: int, tied: bool) -> Any:
    return _config("qwen3", 151_936, widths, layers, (heads, 8), 128, 40_960, 1e6, tied)


def _smollm2(widths: tuple[int, int], layers: int, heads: tuple[int, int], theta: float) -> Any:
    return _config("llama", 49_152, widths, layers, heads, 64, 8192, theta, tied=True, epsilon=1e-5)


# Every vocabulary is at least that of TOKENIZER, which they all use.
CONFIGS: dict[str, dict[str, Any]] = {
    "smollm2-135m": _smollm2((576, 1536), 30, (9, 3), 1e5),
    "smollm2-360m": _smollm2((960, 2560), 32, (15, 5), 1e5),
    "smollm2-1.7b": _smollm2((2048, 8192), 24, (32, 32), 1.3e5),
    "llama-3.2-1b": _llama3((2048, 8192), 16, 32, 64, tied=True, factor=32.0),
    "llama-3.2-3b": _llama3((3072, 8192), 28, 24, 128, tied=True, factor=32.0),
    "llama-3.1-8b": _llama3((4096, 14_336), 32, 32, 128, tied=False, factor=8.0),
    "qwen2.5-0.5b": _qwen2(151_936, (896, 4864), 24, (14, 2), 64),
    "qwen2.5-1.5b": _qwen2(151_936, (1536, 8960), 28, (12, 2), 128),
    "qwen2.5-7b": _qwen2(152_064, (3584, 18_944), 28, (28, 4), 128),
    "qwen3-0.6b": _qwen3((1024, 3072), 28, 16, tied=True),
    "qwen3-1.7b": _qwen3((2048, 6144), 28, 16, tied=True),
    "qwen3-4b": _qwen3((2560, 9728), 36, 32, tied=True),
    "qwen3-8b": _qwen3((4096, 12_288), 36, 32, tied=False),
}


def config_of(name: str) -> dict[str, Any]:
    """The config.json of a synthetic model. Raises UsageError when there is none of this name."""
    try:
        return CONFIGS[name.lower()]
    except KeyError:
        raise UsageError(f"no synthetic model is called {name}", f"there are {', '.join(CONFIGS)}") from None


def synthetic_model(
    name: str, tokenizer: Path, models: Path, *, dtype: str, device: Any, progress: Progress = silent
) -> Path:
    """The folder below `models` of a random model of a named shape, made if it is not there: true dimensions and
    vocabulary, bfloat16 weights, the same for everyone, and the tokenizer files of the folder `tokenizer`.

    dtype, device: what it is going to be loaded with. Raises UsageError for an unknown name, OutOfMemory and DiskFull
    before anything is written.
    """
    from actqkv_cli.model.choose import free_memory  # torch

    config = config_of(name)
    parameters = parse_config(config).shape.parameters
    needed, free = parameters * (4 if dtype == "float32" else 2), free_memory(device)
    if needed > free:
        raise OutOfMemory(
            f"{name} takes {needed / 1e9:.1f} GB in {dtype}, and {free / 1e9:.1f} GB of {device} memory are free",
            f"choose a smaller one: {', '.join(CONFIGS)}",
        )
    folder = models / f"synthetic-{name.lower()}-{_VERSION}"
    if not folder.is_dir():
        models.mkdir(parents=True, exist_ok=True)
        room = shutil.disk_usage(models).free
        if 2 * parameters > room:
            raise DiskFull(
                f"{name} takes {2 * parameters / 1e9:.1f} GB, and {room / 1e9:.1f} GB are free in {models}",
                "choose a smaller one, or another place with ACTQKV_CACHE",
            )
    return make_once(folder, lambda scratch: _make(config, tokenizer, scratch / "model", progress))


def _make(config: dict[str, Any], tokenizer: Path, target: Path, progress: Progress) -> None:
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer

    from actqkv_cli.model.causal_lm import CausalLM

    target.mkdir()
    for file in _TOKENIZER:
        if (tokenizer / file).is_file():
            shutil.copyfile(tokenizer / file, target / file)
    words = Tokenizer.from_file(str(target / "tokenizer.json"))
    texts = words.decode_batch([[number] for number in range(words.get_vocab_size())])
    seen = [bool(text.strip()) and text.isprintable() and "\ufffd" not in text for text in texts]
    unseen = ~torch.tensor(seen + [False] * (config["vocab_size"] - len(seen)))
    with torch.device("meta"):
        model = CausalLM(parse_config(config))
    parameters = dict(model.named_parameters())  # a tied head once
    total = sum(2 * parameter.numel() for parameter in parameters.values())
    generator = torch.Generator().manual_seed(0)
    places: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    done = held = 0

    def write() -> None:
        file = f"model-{len(set(places.values())) + 1:05d}.safetensors"
        save_file(shard, target / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, file))
        shard.clear()

    for name, parameter in parameters.items():
        progress("make", done, total)
        if held and held + 2 * parameter.numel() > _SHARD_BYTES:
            write()
            held = 0
        weight = torch.zeros(parameter.shape, dtype=torch.bfloat16)
        if name.endswith("norm.weight"):
            weight.fill_(1)
        elif not name.endswith("bias"):
            weight.normal_(0, _RANGE, generator=generator)
        if len(weight) == config["vocab_size"]:
            weight[unseen] = 0  # an answer then has text from its first token on, and no end but the one asked for
        shard[name] = weight
        held += 2 * weight.numel()
        done += 2 * weight.numel()
    write()
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_json(target / WEIGHTS_INDEX, index)
    write_json(target / "config.json", config)
    progress("make", total, total)
