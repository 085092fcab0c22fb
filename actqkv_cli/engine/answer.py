"""Decoding an answer, a token at a time."""

import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from actqkv_cli.engine.run import Run
from actqkv_cli.model.tokenizer import Tokenizer

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what could move a terminal's cursor, or worse
_LONGEST_PERIOD = 16  # tokens
_LOOP_ROUNDS, _LOOP_TOKENS = 4, 20  # a million has 6 zeros, a fraction 16 digits, and a refrain comes three times


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; top_p: the likeliest tokens that together have this share; seed: of the draw."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int = 128


Finish = Literal["stop", "length", "repetition"]


@dataclass(frozen=True)
class Answer:
    """likelihood: the geometric mean of its tokens' probabilities, that which ends it included; min_probability: the
    smallest."""

    text: str
    tokens: int
    finish: Finish
    likelihood: float = 1.0
    min_probability: float = 1.0


Advance = Callable[[list[Run], list[int]], object]
"""Feeds runs their next tokens, after which each has new logits."""


def decode(
    run: Run,
    tokenizer: Tokenizer,
    stop: Collection[int],
    sampling: Sampling,
    on_text: Callable[[str], None] = lambda piece: None,
    check: Callable[[], None] = lambda: None,
) -> Answer:
    """Decode from a run's logits until the model ends its turn or goes round in a loop, or for `max_tokens`.

    stop: the tokens that end a turn.

    Text is passed on as it comes, so what was passed on of a loop stays: it only goes no further.

    check: called before every token; what it raises ends the answer.
    """

    def step(_: list[Run], tokens: list[int]) -> None:
        check()
        run.step(tokens[0])

    return decode_all([run], step, tokenizer, stop, sampling, lambda row, piece: on_text(piece))[0]


def decode_all(
    runs: Sequence[Run],
    step: Advance,
    tokenizer: Tokenizer,
    stop: Collection[int],
    sampling: Sampling,
    on_text: Callable[[int, str], None] = lambda row, piece: None,
) -> list[Answer]:
    """The same for several runs, whose tokens go through the model together; one that ends leaves the others to it."""
    writers = [_Writer(tokenizer, sampling) for _ in runs]
    going = list(range(len(runs)))
    while going:
        tokens = [(row, writers[row].draw(runs[row].logits, stop)) for row in going]
        fed = [(row, token) for row, token in tokens if token is not None]
        for row, token in fed:
            if piece := writers[row].take(token):
                on_text(row, piece)
        fed = [(row, token) for row, token in fed if not writers[row].full()]
        going = [row for row, _ in fed]
        if fed:
            step([runs[row] for row in going], [token for _, token in fed])
    return [writer.answer() for writer in writers]


class _Writer:
    """The state of one answer: its tokens become text."""

    def __init__(self, tokenizer: Tokenizer, sampling: Sampling) -> None:
        self._backend = tokenizer.backend
        self._sampling = sampling
        self._generator = torch.Generator().manual_seed(sampling.seed)
        self._stream = DecodeStream(skip_special_tokens=True)
        self.pieces: list[str] = []
        self.tokens: list[int] = []
        self.finish: Finish = "length"
        self._log_p: list[float] = []

    def answer(self) -> Answer:
        mean, lowest = sum(self._log_p) / max(len(self._log_p), 1), min(self._log_p, default=0.0)
        text = "".join(self.pieces).rstrip()
        return Answer(text, len(self.tokens), self.finish, math.exp(mean), math.exp(lowest))

    def draw(self, logits: Tensor, stop: Collection[int]) -> int | None:
        """The next token, or None where the model ends its turn."""
        token = _draw(logits, self._sampling, self._generator)
        self._log_p.append(float(logits[token] - logits.logsumexp(dim=-1)))
        if token in stop:
            self.finish = "stop"
            return None
        return token

    def take(self, token: int) -> str:
        """The text that a token completes; it may be none."""
        self.tokens.append(token)
        piece = _CONTROL.sub("", self._stream.step(self._backend, token) or "")
        piece = piece if self.pieces else piece.lstrip()
        if piece:
            self.pieces.append(piece)
        return piece

    def full(self) -> bool:
        """Nothing more is to be written."""
        if is_loop(self.tokens):
            self.finish = "repetition"
            return True
        return len(self.tokens) >= self._sampling.max_tokens


def is_loop(tokens: Sequence[int]) -> bool:
    """They end in the same few tokens, over and over again."""
    for period in range(1, _LONGEST_PERIOD + 1):
        length = max(_LOOP_ROUNDS * period, _LOOP_TOKENS)
        tail = tokens[-length:]
        if len(tail) == length and tail[period:] == tail[:-period]:
            return True
    return False


def _draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    if sampling.temperature < 1e-6:  # colder is the same, until the division overflows
        return int(logits.argmax())
    p = torch.softmax(logits.cpu() / sampling.temperature, dim=-1)
    ordered, tokens = p.sort(descending=True)
    # A token stays while those before it have not yet filled top_p; the likeliest always does.
    ordered = ordered.masked_fill(ordered.cumsum(0) - ordered >= sampling.top_p, 0)
    ordered[0] = p[tokens[0]]
    return int(tokens[torch.multinomial(ordered, 1, generator=generator)])
