"""A model's tokenizer and its chat template, without transformers, which takes longer to import than torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import tokenizers
from jinja2 import Environment, Template, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from actqkv_cli.errors import UsageError, first_line
from actqkv_cli.model.files import ModelFiles, chat_template, read_json, token_text

Message = dict[str, str]  # "role", "content"


@dataclass(frozen=True)
class Tokenizer:
    """backend: what tokenizer.json says; special: the texts of "bos_token", "eos_token" and the like; chat_template:
    None for a model without."""

    backend: tokenizers.Tokenizer
    special: Mapping[str, str]
    chat_template: Template | None

    @property
    def eos(self) -> int | None:
        """The token that ends a text."""
        return self.backend.token_to_id(self.special.get("eos_token", ""))

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, with none added around it."""
        self.backend.encode_special_tokens = False
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_plain(self, text: str) -> tokenizers.Encoding:
        """The same, with character positions; what looks like a special token stays text."""
        self.backend.encode_special_tokens = True
        return self.backend.encode(text, add_special_tokens=False)

    def decode(self, tokens: Sequence[int]) -> str:
        """Their text, without special tokens."""
        return self.backend.decode(tokens, skip_special_tokens=True)

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt for an answer to `messages`, by the chat template. Raises UsageError where that fails."""
        assert self.chat_template is not None
        asked = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
        try:
            return self.chat_template.render(asked, enable_thinking=False, **self.special)
        except Exception as error:  # it is a program, from elsewhere
            raise UsageError(f"the model's chat template fails: {first_line(error)}") from error


def load_tokenizer(files: ModelFiles) -> Tokenizer:
    """Raises UsageError for a tokenizer.json, a tokenizer_config.json or a chat template that is none."""
    path = files.folder / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    try:
        backend = tokenizers.Tokenizer.from_file(str(files.folder / "tokenizer.json"))
        backend.no_truncation()  # its last user's settings
        backend.no_padding()
        special = {
            name: token_text(token)
            for name, token in settings.items()
            if name.endswith("_token") and token and isinstance(token, str | dict)
        }
        declared = [token for token in settings.get("added_tokens_decoder", {}).values() if token.get("special")]
        # tokenizer.json may hold them as common ones, which a document could then write.
        texts = {*special.values(), *map(token_text, declared)} & backend.get_vocab().keys()
        backend.add_special_tokens([tokenizers.AddedToken(text, normalized=False) for text in sorted(texts)])
    except Exception as error:  # the library raises nothing narrower
        raise UsageError(f"the tokenizer of {files.name} cannot be read: {first_line(error)}") from error
    return Tokenizer(backend, special, compiled(chat_template(files.folder, settings)))


def compiled(chat_template: str) -> Template | None:
    """None of an empty one. Raises UsageError for one that is no template."""
    try:
        return _environment().from_string(chat_template) if chat_template else None
    except Exception as error:  # Python's own too, where it is nested too deeply
        raise UsageError(f"the model's chat template cannot be read: {first_line(error)}") from error


class _Generation(Extension):
    """`{% generation %}`, which marks for training what an answer is, and says nothing here."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _environment() -> Environment:
    """What the templates of models are written for."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    made.filters["tojson"] = _to_json
    made.globals |= {"raise_exception": _refuse, "strftime_now": lambda format: datetime.now().strftime(format)}
    return made


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Not jinja's own, which is for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise TemplateError(message)
