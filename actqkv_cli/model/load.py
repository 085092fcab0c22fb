"""From model files to a model that computes: on which device, and in which number type."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from safetensors import safe_open

from actqkv_cli.errors import OutOfMemory, UsageError, first_line, out_of_memory
from actqkv_cli.model.causal_lm import CausalLM
from actqkv_cli.model.config import ModelConfig, parse_config
from actqkv_cli.model.files import ModelFiles, read_json, weight_files
from actqkv_cli.model.tokenizer import Tokenizer, load_tokenizer
from actqkv_kernels.backend import VARIABLE, Backend, BackendUnavailable, runs_triton

_ENDS = ("model.embed_tokens.weight", "lm_head.weight")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, on `device`, with weights of type `dtype`. stop_tokens: with which it ends its turn."""

    model: CausalLM
    tokenizer: Tokenizer
    stop_tokens: frozenset[int]
    files: ModelFiles
    dtype: str
    device: torch.device


def load_model(files: ModelFiles, *, dtype: str = "auto", device: str = "auto") -> LoadedModel:
    """Loads weights and tokenizer, without network and without running code from the model's folder.

    Raises UsageError for a model, device, type or backend that cannot be used, OutOfMemory when it does not fit.
    """
    config = parse_config(read_json(files.folder / "config.json"))
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    kernels_run(chosen_device)  # where they must and cannot, nothing is to be begun
    if chosen_device.type == "cuda":
        torch.cuda.set_device(chosen_device)  # kernels and streams are of the current one
    model = _load_weights(files, config, DTYPES[chosen_dtype], chosen_device)
    tokenizer = load_tokenizer(files)
    stop = _stop_tokens(files.folder, config, tokenizer)
    return LoadedModel(model, tokenizer, stop, files, chosen_dtype, chosen_device)


def choose_device(device: str) -> torch.device:
    """The device by name ("cpu", "cuda", "cuda:1", "mps"), or for "auto" the fastest that is here."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    if device == "auto":
        device = "cuda" if gpus else "mps" if mps else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,2})?", device):
        raise UsageError(f"unknown device: {device}", "devices are auto, cpu, cuda, cuda:N and mps")
    place = torch.device(device)
    if (place.type == "cuda" and (place.index or 0) >= gpus) or (place.type == "mps" and not mps):
        raise UsageError(f"there is no {device} device here", "leave the device to auto, or ask for cpu")
    return place


def choose_dtype(dtype: str, device: torch.device) -> str:
    """The number type by name, or for "auto" the fastest that the device computes natively and safely."""
    if dtype == "auto":
        if device.type == "cuda":
            return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
        if device.type == "mps":
            return "float16"
        return "bfloat16" if _cpu_has_bfloat16() else "float32"
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype: {dtype}", f"types are auto, {', '.join(DTYPES)}")
    return dtype


def kernels_run(device: torch.device) -> bool:
    """Whether attention is computed by kernels on a device. Raises UsageError if it must be and cannot."""
    try:
        return runs_triton("auto", "attention over pages", device)
    except (BackendUnavailable, ValueError) as error:
        raise UsageError(str(error), f"{VARIABLE} is one of {', '.join(get_args(Backend))}") from error


def _cpu_has_bfloat16() -> bool:
    try:
        capabilities = torch.cpu.get_capabilities()
    except AttributeError:  # torch before 2.11
        capabilities = {
            "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
            "amx_bf16": torch.cpu._is_amx_tile_supported(),
        }
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "sve_bf16", "bf16"))


def _load_weights(files: ModelFiles, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> CausalLM:
    weights: dict[str, torch.Tensor] = {}
    try:
        for path in weight_files(files.folder):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    if not name.endswith("rotary_emb.inv_freq"):  # in files from before transformers 4.32
                        weights[name] = file.get_tensor(name).to(device, dtype)
    except Exception as error:  # a damaged file shows as almost any error
        if out_of_memory(error):
            raise OutOfMemory(
                f"the model {files.name} does not fit in the memory of {device}",
                "choose a smaller model with --model, --dtype bfloat16, or --device cpu",
            ) from error
        raise UsageError(f"the model {files.name} cannot be loaded: {first_line(error)}") from error
    ends = [weights[name] for name in _ENDS if name in weights]
    if config.tie_word_embeddings and ends:
        tied = torch.equal(ends[0], ends[-1])  # an output head of the file's own stays that
        config = config.model_copy(update={"tie_word_embeddings": tied})
        weights |= zip(_ENDS, (ends[0], ends[-1]), strict=True)
    with torch.device("meta"):
        model = CausalLM(config)
    wanted, found = ({name: w.shape for name, w in of.items()} for of in (model.state_dict(), weights))
    if odd := sorted(name for name in wanted | found if wanted.get(name) != found.get(name)):
        raise UsageError(
            f"the weights of {files.name} do not fit its config: {odd[0]} is missing, unknown or of another shape"
        )
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    return model.requires_grad_(False)


def _stop_tokens(folder: Path, config: ModelConfig, tokenizer: Tokenizer) -> frozenset[int]:
    told = folder / "generation_config.json"
    ends = (read_json(told) if told.is_file() else {}).get("eos_token_id") or config.eos_token_id
    ends = [*(ends if isinstance(ends, list) else [ends]), tokenizer.eos]
    return frozenset(token for token in ends if isinstance(token, int))
