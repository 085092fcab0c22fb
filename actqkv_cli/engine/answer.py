"""Decoding an answer, a token at a time."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from actqkv_cli.engine.session import Run

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what could move a terminal's cursor, or worse


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; top_p: the likeliest tokens that together have this share; seed: of the draw."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int = 128


@dataclass(frozen=True)
class Answer:
    text: str
    tokens: int
    finish: Literal["stop", "length"]


def decode(run: Run, model: Any, tokenizer: Any, sampling: Sampling, on_text: Callable[[str], None]) -> Answer:
    """Decode from a run's logits until the model ends its turn, or for `max_tokens`. Text is passed on as it comes."""
    stop = _stop_tokens(model, tokenizer)
    generator = torch.Generator().manual_seed(sampling.seed)
    stream = DecodeStream(skip_special_tokens=True)
    pieces: list[str] = []
    count = 0
    finish: Literal["stop", "length"] = "length"
    while count < sampling.max_tokens:
        token = _draw(run.logits, sampling, generator)
        if token in stop:
            finish = "stop"
            break
        count += 1
        piece = _CONTROL.sub("", stream.step(tokenizer.backend_tokenizer, token) or "")
        piece = piece if pieces else piece.lstrip()
        if piece:
            pieces.append(piece)
            on_text(piece)
        if count < sampling.max_tokens:
            run.step(token)
    return Answer("".join(pieces).rstrip(), count, finish)


def _draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    if sampling.temperature == 0:
        return int(logits.argmax())
    p = torch.softmax(logits.cpu() / sampling.temperature, dim=-1)
    ordered, tokens = p.sort(descending=True)
    # A token stays while those before it have not yet filled top_p; the likeliest always does.
    ordered = ordered.masked_fill(ordered.cumsum(0) - ordered >= sampling.top_p, 0)
    ordered[0] = p[tokens[0]]
    return int(tokens[torch.multinomial(ordered, 1, generator=generator)])


def _stop_tokens(model: Any, tokenizer: Any) -> set[int]:
    ends = model.generation_config.eos_token_id
    stop = set(ends if isinstance(ends, list) else [ends])
    return {token for token in stop | {tokenizer.eos_token_id} if token is not None}
