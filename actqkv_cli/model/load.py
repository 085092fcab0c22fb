"""From model files to a model that computes: on which device, and in which number type."""

import re
from dataclasses import dataclass
from typing import Any

import torch

from actqkv_cli.errors import OutOfMemory, UsageError, first_line, out_of_memory
from actqkv_cli.model.files import ModelFiles, read_json
from actqkv_cli.model.quiet import quiet_transformers
from actqkv_cli.model.supported import refuse_unfit

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run: in evaluation mode, on `device`, with weights of type `dtype`."""

    model: Any  # transformers.PreTrainedModel
    tokenizer: Any  # transformers.PreTrainedTokenizerFast
    files: ModelFiles
    dtype: str
    device: torch.device


def load_model(files: ModelFiles, *, dtype: str = "auto", device: str = "auto") -> LoadedModel:
    """Loads weights and tokenizer, without network and without running code from the model's folder.

    Raises UsageError for a model, device or type that cannot be used, OutOfMemory when it does not fit.
    """
    refuse_unfit(read_json(files.folder / "config.json"))
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    if chosen_device.type == "cuda":
        torch.cuda.set_device(chosen_device)  # kernels and streams are of the current one
    with quiet_transformers():
        model = _load_weights(files, DTYPES[chosen_dtype], chosen_device)
        tokenizer = load_tokenizer(files)
    return LoadedModel(model=model, tokenizer=tokenizer, files=files, dtype=chosen_dtype, device=chosen_device)


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


def _cpu_has_bfloat16() -> bool:
    try:
        capabilities = torch.cpu.get_capabilities()
    except AttributeError:  # torch before 2.11
        capabilities = {
            "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
            "amx_bf16": torch.cpu._is_amx_tile_supported(),
        }
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "sve_bf16", "bf16"))


def _load_weights(files: ModelFiles, dtype: torch.dtype, device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            files.folder,
            dtype=dtype,
            device_map=None if device.type == "cpu" else {"": device},
            attn_implementation="sdpa",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # a damaged or unfit file shows as almost any error
        if out_of_memory(error):
            raise OutOfMemory(
                f"the model {files.name} does not fit in the memory of {device}",
                "choose a smaller model with --model, --dtype bfloat16, or --device cpu",
            ) from error
        raise UsageError(f"the model {files.name} cannot be loaded: {first_line(error)}") from error
    # transformers fills what is absent with random numbers, and leaves out what it does not know.
    odd = [*report["missing_keys"], *report["unexpected_keys"]]
    if odd:
        raise UsageError(f"the weights of {files.name} do not fit its config: {sorted(odd)[0]} is missing or unknown")
    return model.eval().requires_grad_(False)


def load_tokenizer(files: ModelFiles) -> Any:
    """The model's tokenizer alone, as its tokenizer.json says."""
    from transformers import PreTrainedTokenizerFast

    # Not AutoTokenizer: the class that a config names may rebuild the tokenizer from its vocabulary alone,
    # and lose how tokenizer.json splits text.
    return PreTrainedTokenizerFast.from_pretrained(
        files.folder,
        local_files_only=True,
        clean_up_tokenization_spaces=False,
        model_max_length=1 << 40,  # documents are longer than any window; no warning about that
    )
