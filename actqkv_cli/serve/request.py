"""A request's body: what is understood of OpenAI's fields, and our own beside them.

What would change the answer and cannot be done is refused by name, so that no one takes it for done.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from actqkv_cli.config import Settings, load_settings
from actqkv_cli.errors import UsageError

LATEST = ("latest", "actqkv")  # models by these names are the latest document
# Fields that say nothing about the answer.
_NO_EFFECT = (
    "metadata", "parallel_tool_calls", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user",
)  # fmt: skip
# Fields that we do not have, each with the values that ask for nothing.
_ONLY: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _as_parts(value: object) -> object:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class _Object(BaseModel):
    """null is as good as left out, and an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None}


class _Text(_Object):
    type: Literal["text"]
    text: str


class _Message(_Object):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[_Text], BeforeValidator(_as_parts)]
    name: str = ""

    @property
    def text(self) -> str:
        return "\n".join(part.text for part in self.content)


class _StreamOptions(_Object):
    include_usage: bool = False
    include_obfuscation: bool = False  # pads chunks against eavesdroppers; we never do


class ChatRequest(_Object):
    """documents: selectors of documents that are asked as one, or "all"; without it `model` selects one."""

    model: str
    messages: list[_Message]
    documents: Annotated[list[str], Field(min_length=1, max_length=100)] | Literal["all"] | None = None
    policy: str | None = None
    budget: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_listed), Field(max_length=4)] = []
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()

    @model_validator(mode="before")
    @classmethod
    def _understood(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        for name, values in _ONLY.items():
            if fields.get(name) is not None and fields[name] not in values:
                raise ValueError(f"{name} is not supported, or not with this value")
        return {name: value for name, value in fields.items() if name not in (*_NO_EFFECT, *_ONLY)}

    def settings(self, base: Settings) -> Settings:
        """The server's, but for what the request says. Raises UsageError for a value that does not do."""
        fields: dict[str, Any] = {
            **self.model_dump(include={"policy", "budget", "temperature", "top_p", "seed"}),
            "max_tokens": self.max_completion_tokens or self.max_tokens,
        }
        given = {name: value for name, value in fields.items() if value is not None}
        try:
            checked = load_settings(**given)
        except UsageError as error:
            raise UsageError(error.message.removeprefix("setting ")) from None  # its hint is about the command line
        return base.model_copy(update={name: getattr(checked, name) for name in given})


def parse(body: bytes) -> ChatRequest:
    """Raises UsageError that names the field which is wrong."""
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")  # pydantic's word for what we said ourselves
        raise UsageError(f"{place}: {message}" if place else message) from None
    if not conversation(request.messages)[2]:
        raise UsageError("the question is empty")
    return request


def conversation(messages: Sequence[_Message]) -> tuple[str, list[tuple[str, str]], str]:
    """What system messages say about how to answer; earlier questions and their answers; the question.

    Raises UsageError for messages that are not question, answer, question and so on.
    """
    instruction = "\n".join(message.text.strip() for message in messages if message.role in ("system", "developer"))
    spoken = [message for message in messages if message.role in ("user", "assistant")]
    if [message.role for message in spoken] != ["user", "assistant"] * (len(spoken) // 2) + ["user"]:
        raise UsageError("messages must be of user and assistant in turn, and the last of user")
    texts = [message.text.strip() for message in spoken]
    return instruction, list(zip(texts[0:-1:2], texts[1::2], strict=True)), texts[-1]
