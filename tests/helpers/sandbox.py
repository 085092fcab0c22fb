"""The command in a world of its own: tmp folders for everything, no network, the checkout's code."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "sample_docs"
SMALL = ["--device", "cpu", "--dtype", "float32"]
TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Done:
    """What a command left behind: its exit code and both streams."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Sandbox:
    """`home` is the library; `cache` may be shared, so that a model is calibrated once."""

    root: Path
    cache: Path
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.root / "library"

    @property
    def config(self) -> Path:
        return self.root / "config" / "actqkv" / "config.toml"

    @property
    def env(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}",
            "HOME": str(self.root),
            "XDG_CONFIG_HOME": str(self.root / "config"),
            "XDG_RUNTIME_DIR": str(self.root / "run"),
            "HF_HOME": str(self.root / "hub"),
            "HF_HUB_OFFLINE": "1",
            "ACTQKV_HOME": str(self.home),
            "ACTQKV_CACHE": str(self.cache),
            "ACTQKV_KEEP_ALIVE": "0",
            "OMP_NUM_THREADS": "1",
            "LC_ALL": "C.UTF-8",
            **self.more,
        }

    def with_env(self, **more: str) -> "Sandbox":
        return replace(self, more={**self.more, **more})

    def copy(self, root: Path) -> "Sandbox":
        """The same with a library of its own, which may be damaged."""
        shutil.copytree(self.home, root / "library")
        return replace(self, root=root)

    def start(self, *args: str | Path, **options: Any) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "actqkv_cli", *map(str, args)]
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        how = {"env": self.env, "cwd": self.root, "text": True, "encoding": "utf-8", **pipes, **options}
        return subprocess.Popen(command, **how)

    def run(self, *args: str | Path, stdin: str | bytes | None = None, timeout: float = 180, **options: Any) -> Done:
        if stdin is not None:
            options["stdin"] = subprocess.PIPE
        process = self.start(*args, **options)
        if isinstance(stdin, bytes):
            assert isinstance(process.stdin, io.TextIOWrapper)
            process.stdin.buffer.write(stdin)
            process.stdin.close()
            process.stdin, stdin = None, None
        return finish(process, stdin, timeout)

    def folder(self, start: str) -> Path:
        """The one document whose id starts so."""
        (found,) = self.home.glob(f"{start}*")
        return found


def finish(process: "subprocess.Popen[str]", stdin: str | None = None, timeout: float = 180) -> Done:
    try:
        out, err = process.communicate(stdin, timeout)
    finally:
        process.kill()
    assert "Traceback" not in err, err
    return Done(process.returncode, out, err)


def flip(path: Path, offset: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= mask
    path.write_bytes(data)


def save_tiny_model(folder: Path, texts: Sequence[str]) -> None:
    """A random Llama of two layers, with a byte-level BPE tokenizer that knows the commonest words of `texts`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from actqkv_cli.model.quiet import quiet_transformers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.3,  # answers then differ when what is attended does
        bos_token_id=tokenizer.token_to_id("<s>"),
        eos_token_id=tokenizer.token_to_id("</s>"),
    )
    model = LlamaForCausalLM(config)
    model.lm_head.weight.data[config.eos_token_id] = 0  # answers are as long as they may be
    with quiet_transformers():
        model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
