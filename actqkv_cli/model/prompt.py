"""The prompt: the model's own chat template, split where the document ends.

Everything up to the end of the document is read once and stored; the question and what follows it are fed later.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from actqkv_cli.errors import UsageError
from actqkv_cli.model.tokenizer import Tokenizer

_DOCUMENT, _QUESTION = "<<actqkv-document>>", "<<actqkv-question>>"
_CONTENT = (
    "Here is a document.\n\n"
    f"{_DOCUMENT}\n\n"
    "Answer the question from the document, in a few words.\n"
    f"Question: {_QUESTION}"
)
_ANSWER, _NEXT = "<<actqkv-answer>>", "<<actqkv-next>>"
_PLAIN_END = "\nAnswer:"
_PIECE = 50_000  # characters tokenised at a time; a longer page is cut at white space


@dataclass(frozen=True)
class Template:
    """The rendered prompt around the document and the question, as text; turn: from an answer to the next question."""

    before: str
    between: str
    after: str
    turn: str


@dataclass(frozen=True)
class EncodedDocument:
    """The stored part of a prompt. ids, char_start, page: int32 `(T,)`; the template's own tokens come first.

    char_start: the character of the text at which a token begins (0 for the template's); page: the number of the
    page it stands on; start: the first token of the document itself.
    """

    ids: Tensor
    char_start: Tensor
    page: Tensor
    start: int


@dataclass(frozen=True)
class EncodedQuestion:
    """What is fed at question time: ids `(W,)` int64, which of them are the question's own, its text, and that of the
    turn before it, in a conversation."""

    ids: Tensor
    own: slice
    text: str = ""
    before: str = ""


def template(tokenizer: Tokenizer) -> Template:
    """The model's chat template around our markers; a model without one gets plain text."""
    asked = [{"role": "user", "content": _CONTENT}]
    again = [{"role": "assistant", "content": _ANSWER}, {"role": "user", "content": _NEXT}]
    first, both = _rendered(tokenizer, asked), _rendered(tokenizer, asked + again)
    parts = re.split(f"{_DOCUMENT}|{_QUESTION}", first)
    turn = re.split(f"{_ANSWER}|{_NEXT}", both)
    if len(parts) != 3 or len(turn) != 3:
        raise UsageError("the model's chat template changes what it is given, so a document cannot be placed in it")
    before, between, after = parts
    return Template(before, between, after, turn[1])


def _rendered(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> str:
    if tokenizer.chat_template:
        return tokenizer.render(messages)
    contents = [message["content"] for message in messages]
    turns = zip(contents[1::2], contents[2::2], strict=True)
    earlier = "".join(f"{_PLAIN_END} {answer}\nQuestion: {question}" for answer, question in turns)
    return tokenizer.special.get("bos_token", "") + contents[0] + earlier + _PLAIN_END


def encode_document(tokenizer: Tokenizer, pages: list[tuple[int, int, str]]) -> EncodedDocument:
    """Tokenise a document behind its template. pages: (number, first character in the text, the page's text).

    What looks like a special token inside the document stays plain text.
    """
    prefix = tokenizer.encode(template(tokenizer).before)
    ids: list[int] = list(prefix)
    starts: list[int] = [0] * len(prefix)
    numbers: list[int] = [pages[0][0]] * len(prefix)
    for number, first, text in pages:
        for offset, piece in _pieces(text):
            encoded = tokenizer.encode_plain(piece)
            ids.extend(encoded.ids)
            starts.extend(first + offset + begin for begin, _ in encoded.offsets)
            numbers.extend([number] * len(encoded.ids))
    ids_, starts_, numbers_ = (torch.tensor(x, dtype=torch.int32) for x in (ids, starts, numbers))
    return EncodedDocument(ids_, starts_, numbers_, len(prefix))


def encode_question(
    tokenizer: Tokenizer, question: str, instruction: str = "", prefix: str = "", before: tuple[str, str] | None = None
) -> EncodedQuestion:
    """The question between the rest of the template.

    instruction: how to answer, on lines of its own behind the question; prefix: what the answer is made to begin with;
    before: the question and the answer that it follows, which were fed before; without, it follows the document.
    """
    parts = template(tokenizer)
    between = tokenizer.encode(parts.turn if before else parts.between)
    own = tokenizer.encode_plain(question).ids
    after = tokenizer.encode_plain(f"\n{instruction}").ids if instruction else []
    after += tokenizer.encode(parts.after) + tokenizer.encode_plain(prefix).ids
    place = slice(len(between), len(between) + len(own))
    return EncodedQuestion(torch.tensor(between + own + after), place, question, "\n".join(before or ()))


def encode_turns(
    tokenizer: Tokenizer, turns: Sequence[tuple[str, str]], question: str, instruction: str = ""
) -> EncodedQuestion:
    """The last question, and before it earlier ones with their answers, which are fed again.

    instruction: as of `encode_question`, to the last one.
    """
    fed: list[int] = []
    before = None
    for asked, answer in turns:
        fed += encode_question(tokenizer, asked, before=before).ids.tolist()
        fed += tokenizer.encode_plain(answer).ids
        before = asked, answer
    last = encode_question(tokenizer, question, instruction, before=before)
    own = slice(last.own.start + len(fed), last.own.stop + len(fed))
    return replace(last, ids=torch.cat([torch.tensor(fed, dtype=torch.int64), last.ids]), own=own)


def _pieces(text: str) -> list[tuple[int, str]]:
    """Cut a long page where a word ends, so that a tokenizer never sees more than it takes in its stride."""
    pieces = []
    start = 0
    while start < len(text):
        end = min(start + _PIECE, len(text))
        if end < len(text):
            space = max(text.rfind(" ", start + 1, end), text.rfind("\n", start + 1, end))
            end = space if space > start else end
        pieces.append((start, text[start:end]))
        start = end
    return pieces
