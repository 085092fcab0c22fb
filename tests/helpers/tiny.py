"""Tiny random models, a tiny tokenizer, and documents stored the real way: writer, prefill, commit, reader."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

from actqkv_cli.engine.ingest import _head_keys
from actqkv_cli.engine.methods import method_tensors
from actqkv_cli.engine.prefill import prefill
from actqkv_cli.engine.session import Session, open_session
from actqkv_cli.model.causal_lm import CausalLM
from actqkv_cli.model.config import parse_config
from actqkv_cli.model.prompt import EncodedQuestion
from actqkv_cli.model.stock import stock_model
from actqkv_cli.model.tokenizer import Tokenizer, compiled
from actqkv_cli.store.manifest import METHODS, Draft, Geometry, Manifest, ReadingSettings, RetrievalHead, SourceFile
from actqkv_cli.store.reader import DocumentReader
from actqkv_cli.store.tensors import names_in
from actqkv_cli.store.writer import DocumentWriter

VOCABULARY = 1000
WORD = 5  # characters of the text to a token
BLOCK, SINK, LOCAL = 8, 8, 32
HEADS = (RetrievalHead(layer=1, head=2, score=0.9), RetrievalHead(layer=0, head=1, score=0.5))
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 1024}
SLIDING = {"use_sliding_window": True, "sliding_window": 20}
LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **SMALL},
    "llama3-rope": {"model_type": "llama", **SMALL, "rope_parameters": LLAMA3},
    "yarn": {"model_type": "llama", **SMALL, "rope_parameters": YARN},
    "linear": {"model_type": "llama", **SMALL, "rope_parameters": LINEAR},
    "mistral": {"model_type": "mistral", **SMALL, "sliding_window": None},
    "mistral-sliding": {"model_type": "mistral", **SMALL, "sliding_window": 60},
    "qwen2": {"model_type": "qwen2", **SMALL},
    "qwen2-sliding": {"model_type": "qwen2", **SMALL, **SLIDING, "max_window_layers": 2},
    "qwen3": {"model_type": "qwen3", **SMALL},
    "smollm3": {"model_type": "smollm3", **SMALL, "no_rope_layer_interval": 2},
}


@cache
def model(family: str = "llama") -> CausalLM:
    """A model with random weights, large enough that attention is far from uniform."""
    torch.manual_seed(1)
    made = CausalLM(parse_config(CONFIGS[family]))
    for name, weight in made.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(weight, 1.0, 0.1)
        else:
            torch.nn.init.normal_(weight, 0.0, 0.2)
    return made.requires_grad_(False)


def tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))


def words(ids: Tensor) -> str:
    """The text that tokens stand for: each a word of its own, of `WORD` characters with the space behind it."""
    return "".join(f"t{token:03d} " for token in ids.tolist())


def geometry(of: Any, segment_tokens: int = 32) -> Geometry:
    config = of.config
    dtype: Any = str(of.dtype).removeprefix("torch.")
    return Geometry(
        layers=config.num_hidden_layers,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        block_size=BLOCK,
        segment_tokens=segment_tokens,
        dtype=dtype,
    )


def reading(**changes: Any) -> ReadingSettings:
    settings = {
        "window": 32,
        "sink": SINK,
        "local": LOCAL,
        "budget": 1 << 20,
        "positions": "original",
        "prefill": "windowed",
        "representative": "mean",
        "score": "dot",
    }
    return ReadingSettings(**{**settings, **changes})


def draft(
    of: Any,
    ids: Tensor,
    name: str,
    how: ReadingSettings,
    heads: Sequence[RetrievalHead] = (),
    segment_tokens: int = 32,
) -> Draft:
    return Draft(
        id=name,
        source=SourceFile(name=name, sha256="0" * 64, page_count=1, characters=len(words(ids)), extractor="none"),
        model={},
        geometry=geometry(of, segment_tokens),
        reading=how,
        tokens=len(ids),
        document_start=0,
        retrieval_heads=list(heads),
    )


def ingest(
    of: Any,
    ids: Tensor,
    folder: Path,
    how: ReadingSettings,
    heads: Sequence[RetrievalHead] = (),
    segment_tokens: int = 32,
    progress: Callable[[int], None] = lambda position: None,
) -> Manifest:
    """Read tokens into a document's folder, as `engine.ingest` does with a file; resumes as it does."""
    plan = draft(of, ids, folder.name, how, heads, segment_tokens)
    with DocumentWriter.open(folder, plan) as writer:
        prefilled = prefill(of, ids, writer, plan.geometry, how, progress)
        loaded: Any = SimpleNamespace(model=of)
        tensors = {"representatives": prefilled.representatives.cpu(), **_head_keys(writer, plan, loaded)}
        tensors |= method_tensors(prefilled, writer, plan.geometry, how, plan.tokens)
        starts = torch.arange(len(ids), dtype=torch.int32) * WORD
        tables = {"ids": ids.int(), "char_start": starts, "page": torch.ones_like(starts)}
        return writer.commit(words(ids), {**tables, **tensors})


@contextmanager
def opened(of: Any, folder: Path, budget: int | None = None) -> Iterator[Session]:
    with DocumentReader(folder) as reader, open_session(of, reader, budget) as session:
        yield session


def question(ids: Tensor, own: slice | None = None) -> EncodedQuestion:
    return EncodedQuestion(ids, slice(0, len(ids)) if own is None else own, words(ids))


def answer_logits(
    session: Session, asked: Tensor, policy: str, answer: Tensor, max_tokens: int | None = None
) -> Tensor:
    """Logits `(1 + A, V)`: after the question, and after each token of a given answer."""
    run = session.start(question(asked), policy, len(answer) if max_tokens is None else max_tokens)
    return torch.stack([run.logits, *(run.step(int(token)) for token in answer)])


def stock_logits(of: Any, ids: Tensor, count: int, document: int = 0, seen: Tensor | None = None) -> Tensor:
    """Logits `(count, V)` at the last positions, by transformers alone.

    seen: of the first `document` tokens, those that the tokens behind them look at, int64; None: all.
    """
    mask = None
    if seen is not None:
        looks = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        looks[document:, :document] = torch.isin(torch.arange(document), seen)
        mask = torch.zeros(1, 1, *looks.shape).masked_fill(~looks, torch.finfo(torch.float32).min)
    with torch.inference_mode():
        return stock_model(of)(ids[None], attention_mask=mask, use_cache=False).logits[0, -count:].float()


@dataclass(frozen=True)
class Stock:
    """What a model computes of tokens: queries `(L, H, T, d)`, keys and values `(L, 2, Hkv, T, d)`, queries and keys
    before rotation; attention `(L, H, T, T)`."""

    queries: Tensor
    states: Tensor
    attention: Tensor


def stock(of: Any, ids: Tensor) -> Stock:
    """By transformers alone."""
    of = stock_model(of)
    caught: dict[tuple[int, str], Tensor] = {}
    for number, layer in enumerate(of.model.layers):
        for kind in ("q", "k", "v"):
            projection = getattr(layer.self_attn, f"{kind}_norm", getattr(layer.self_attn, f"{kind}_proj"))
            projection.register_forward_hook(
                lambda module, given, out, place=(number, kind): caught.update({place: out.detach()})
            )
    of.set_attn_implementation("eager")
    with torch.inference_mode():
        attention = of(ids[None], use_cache=False, output_attentions=True).attentions
    q, k, v = (
        torch.stack(
            [caught[n, kind].reshape(len(ids), -1, of.config.head_dim).transpose(0, 1) for n in range(len(attention))]
        )
        for kind in ("q", "k", "v")
    )
    return Stock(q, torch.stack([k, v], dim=1), torch.cat(attention))


def stored(folder: Path) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """All blocks `(L, N, 2, Hkv, b, d)` of a document, representatives `(L, N, 1, Hkv, d)`, and methods.safetensors."""
    with DocumentReader(folder) as reader:
        manifest = reader.manifest
        blocks = [reader.read_blocks(layer, range(manifest.block_count)) for layer in range(manifest.geometry.layers)]
        return (
            torch.stack(blocks),
            reader.tensors(["representatives"])["representatives"],
            reader.tensors(names_in(METHODS)),
        )


def byte_tokenizer() -> tokenizers.Tokenizer:
    """Every byte is a token; then <s> and </s>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE(vocab={sign: n for n, sign in enumerate(alphabet)}, merges=[]))
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>"])
    return made


def tokenizer(
    corpus: Sequence[str], template: str | None = None, special: Sequence[str] = (), size: int = 400
) -> Tokenizer:
    """A byte-level BPE, trained on the spot. The special tokens come first; the first one is bos, the last eos."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    ends = {"bos_token": special[0], "eos_token": special[-1]} if special else {}
    return Tokenizer(backend, ends, compiled(template or ""))
