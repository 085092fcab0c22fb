"""Decoding: greedy and drawn, when it ends, and that text comes out whole."""

import random
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from actqkv_cli.engine.answer import Answer, Sampling, decode, decode_all, is_loop
from actqkv_cli.model.tokenizer import Tokenizer

STOP = "<|im_end|>"
TEXT = "Größe 漢字 🎉🎉 — naïve, ẞ!"


class Scripted:
    """A run whose next token is always the next of a script, then the stop token."""

    def __init__(self, script: list[int], stop: int) -> None:
        self.script, self.stop, self.fed = script, stop, list[int]()

    @property
    def logits(self) -> Tensor:
        rest = self.script[len(self.fed) :]
        out = torch.zeros(tiny.VOCABULARY)
        out[rest[0] if rest else self.stop] = 50
        return out

    def step(self, token: int) -> Tensor:
        self.fed.append(token)
        return self.logits


class Loose:
    """A run whose logits depend on all tokens so far, and leave much to chance."""

    def __init__(self) -> None:
        self.fed = list[int]()

    @property
    def logits(self) -> Tensor:
        draw = torch.Generator().manual_seed(hash(tuple(self.fed)) % (1 << 31))
        return torch.randn(400, generator=draw)

    def step(self, token: int) -> Tensor:
        self.fed.append(token)
        return self.logits


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny.tokenizer(["no merges"], special=["<|im_start|>", STOP], size=1)


def eos(tokenizer: Tokenizer) -> int:
    assert tokenizer.eos is not None
    return tokenizer.eos


def heard(run: Any, tokenizer: Tokenizer, sampling: Sampling, ends: Collection[int] = ()) -> tuple[Answer, list[str]]:
    pieces: list[str] = []
    return decode(run, tokenizer, {eos(tokenizer), *ends}, sampling, pieces.append), pieces


def scripted(tokenizer: Tokenizer, text: str) -> Scripted:
    return Scripted(tokenizer.encode(text), eos(tokenizer))


def test_text_comes_out_as_it_is_and_ends_with_stop(tokenizer: Tokenizer) -> None:
    run = scripted(tokenizer, TEXT)
    answer, pieces = heard(run, tokenizer, Sampling())
    assert answer == Answer(TEXT, len(TEXT.encode()), "stop")
    assert "".join(pieces) == TEXT
    assert run.fed == run.script  # every token but the last one was fed


@pytest.mark.parametrize("length", range(1, len(TEXT.encode())))
def test_characters_are_never_cut(tokenizer: Tokenizer, length: int) -> None:
    """Here every byte is a token, and the answer may end in the middle of a character."""
    answer, pieces = heard(scripted(tokenizer, TEXT), tokenizer, Sampling(max_tokens=length))
    assert (answer.finish, answer.tokens) == ("length", length)
    assert all("\ufffd" not in piece for piece in pieces)
    assert TEXT.startswith("".join(pieces))
    assert answer.text == TEXT.encode()[:length].decode(errors="ignore").rstrip()


@pytest.mark.parametrize("seed", range(20))
def test_bytes_that_are_no_text_do_no_harm(tokenizer: Tokenizer, seed: int) -> None:
    draw = random.Random(seed)
    script = [draw.randrange(2, 258) for _ in range(60)]
    answer, pieces = heard(Scripted(script, eos(tokenizer)), tokenizer, Sampling(max_tokens=100))
    assert answer.tokens == 60
    assert "".join(pieces).strip() == answer.text


@pytest.mark.parametrize(
    ("ends", "stops"), [((), 1), ((7,), 7), ((8, 9), 9), ((8, 9), 1), ((7,), 1)], ids=str
)  # 1 is the tokenizer's own end
def test_any_stop_token_ends_the_answer(tokenizer: Tokenizer, ends: tuple[int, ...], stops: int) -> None:
    script = [*tokenizer.encode("yes"), stops, *tokenizer.encode("no")]
    answer, _ = heard(Scripted(script, 1), tokenizer, Sampling(), ends)
    assert answer == Answer("yes", 3, "stop")


def test_max_tokens_ends_the_answer(tokenizer: Tokenizer) -> None:
    run = scripted(tokenizer, "one two three")
    answer, _ = heard(run, tokenizer, Sampling(max_tokens=7))
    assert answer == Answer("one two", 7, "length")
    assert len(run.fed) == 6  # nothing is computed that nobody asks for


def test_an_empty_answer(tokenizer: Tokenizer) -> None:
    assert heard(Scripted([], 1), tokenizer, Sampling()) == (Answer("", 0, "stop"), [])


def test_white_space_around_an_answer_is_not_passed_on(tokenizer: Tokenizer) -> None:
    answer, pieces = heard(scripted(tokenizer, " \n yes and no \n"), tokenizer, Sampling())
    assert answer.text == "yes and no"
    assert "".join(pieces).startswith("yes and no")


def test_special_tokens_are_not_text(tokenizer: Tokenizer) -> None:
    script = [*tokenizer.encode("a"), 0, *tokenizer.encode("b")]
    assert heard(Scripted(script, 1), tokenizer, Sampling())[0].text == "ab"


@pytest.mark.parametrize(
    "text",
    [
        "The cost was £1000000, or 1,000,000,000,000.",
        "0.3333333333333333 and 0.0909090909090909",
        "| a | b | c | d |\n" + "|---" * 4 + "|\n" + "| 1 | 2 | 3 | 4 |\n| 5 | 6 | 7 | 8 |",
        "a title\n-------------------\nand a text",
        "ha ha ha ha ha, he laughed",
        "Holy, holy, holy! Row, row, row your boat. No, no, no, no.",
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20",
        "to the sea to the sea to the sea",
    ],
)
def test_what_is_said_more_than_once_is_no_loop(tokenizer: Tokenizer, text: str) -> None:
    """Here every byte is a token: with words for tokens there are fewer of them."""
    answer, pieces = heard(scripted(tokenizer, text), tokenizer, Sampling(max_tokens=500))
    assert (answer.text, "".join(pieces), answer.finish) == (text, text, "stop")


@pytest.mark.parametrize("period", range(1, 17))
@pytest.mark.parametrize("before", [0, 1, 7, 40])
def test_a_loop_of_any_period_ends_the_answer_soon(tokenizer: Tokenizer, period: int, before: int) -> None:
    letters = tokenizer.encode("abcdefghijklmnop" + "0 Every letter, once or twice: QuickBrownFox")
    begun, phrase = letters[16 : 16 + before], letters[:period]
    run = Scripted(begun + phrase * 300, eos(tokenizer))
    answer, pieces = heard(run, tokenizer, Sampling(max_tokens=300))
    assert answer.finish == "repetition"
    assert answer.tokens - before == max(4 * period, 20)
    assert "".join(pieces) == answer.text  # what was streamed cannot be taken back
    assert len(run.fed) == answer.tokens - 1


@pytest.mark.parametrize("seed", range(10))
def test_a_loop_is_what_ends_in_four_equal_rounds(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(300):
        tokens = [draw.randrange(3) for _ in range(draw.randrange(6))] * draw.randrange(12)
        tokens += [draw.randrange(3) for _ in range(draw.randrange(3))]
        loops = False
        for period in range(1, 17):
            rounds = max(4, -(-20 // period))
            last = tokens[-period:]
            whole = last * (rounds + 1)
            length = max(4 * period, 20)
            loops |= len(tokens) >= length and whole[-length:] == tokens[-length:]
        assert is_loop(tokens) == loops


def test_one_that_loops_leaves_the_others_to_it(tokenizer: Tokenizer) -> None:
    loop, long = scripted(tokenizer, "20." + "01" * 90), scripted(tokenizer, TEXT * 3)

    def step(runs: Any, tokens: list[int]) -> None:
        for run, token in zip(runs, tokens, strict=True):
            run.step(token)

    heard: list[list[str]] = [[], []]
    sampling = Sampling(max_tokens=200)
    runs: Any = [loop, long]
    stop = {eos(tokenizer)}
    answers = decode_all(runs, step, tokenizer, stop, sampling, lambda row, text: heard[row].append(text))
    assert [answer.finish for answer in answers] == ["repetition", "stop"]
    assert answers[0].text == "".join(heard[0]) == "20." + "01" * 10
    assert answers[1].text == TEXT * 3


def drawn(tokenizer: Tokenizer, **sampling: Any) -> list[int]:
    run = Loose()
    heard(run, tokenizer, Sampling(max_tokens=30, **sampling))
    return run.fed


def test_greedy_takes_the_likeliest(tokenizer: Tokenizer) -> None:
    run = Loose()
    expected: list[int] = []
    while len(expected) < 29:
        expected.append(int(run.logits.argmax()))
        run.step(expected[-1])
    assert drawn(tokenizer) == expected
    assert drawn(tokenizer, top_p=1e-6, temperature=1.0, seed=3) == expected
    assert drawn(tokenizer, temperature=1e-4, seed=4) == expected


def test_a_seed_can_be_repeated(tokenizer: Tokenizer) -> None:
    first = drawn(tokenizer, temperature=1.0, seed=1)
    torch.manual_seed(99)  # someone else's draws do not matter
    assert drawn(tokenizer, temperature=1.0, seed=1) == first
    assert drawn(tokenizer, temperature=1.0, seed=2) != first


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.0, 0.6), (0.5, 1.0), (2.0, 0.9)])
def test_draws_follow_temperature_and_top_p(tokenizer: Tokenizer, temperature: float, top_p: float) -> None:
    """Shares of 2,000 first tokens of three letters, against those that the definition gives."""
    logits = torch.full((400,), -100.0)
    letters = tokenizer.encode("abc")
    logits[letters] = torch.tensor([0.5, 0.3, 0.2]).log()
    run = SimpleNamespace(logits=logits)
    count = dict.fromkeys("abc", 0)
    for seed in range(2000):
        count[heard(run, tokenizer, Sampling(temperature, top_p, seed, max_tokens=1))[0].text] += 1
    p = torch.tensor([0.5, 0.3, 0.2]) ** (1 / temperature)
    p /= p.sum()
    p[p.cumsum(0) - p >= top_p] = 0
    expected = p / p.sum()
    for letter, share in zip("abc", expected.tolist(), strict=True):
        assert count[letter] / 2000 == pytest.approx(share, abs=0.04)
        assert share > 0 or count[letter] == 0
