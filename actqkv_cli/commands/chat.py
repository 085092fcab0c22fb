"""actqkv chat: a conversation over documents, which remembers what was said."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from actqkv_cli.answering import budget_of, cited, documents, without_trailing_space
from actqkv_cli.commands.answers import show_sources
from actqkv_cli.config import Settings, load_settings
from actqkv_cli.errors import ActqkvError, UsageError
from actqkv_cli.output import note, note_error, write_out
from actqkv_cli.runtime import OtherWorkerNeeded, Runtime
from actqkv_cli.terminal import Check

if TYPE_CHECKING:
    from actqkv_cli.engine.conversation import Conversation
    from actqkv_cli.engine.document import OpenDocument
    from actqkv_cli.invocation import Invocation, Prompts
    from actqkv_cli.model.load import LoadedModel

PROMPT = "> "
_HELP = """/sources        what the last answer rests on
/doc [NAME]     the document; another one, with a conversation of its own
/budget [N]     tokens attended per layer
/policy [NAME]  how blocks are retrieved
/quit           (or Ctrl-D) ends; Ctrl-C stops an answer"""


@dataclass
class _Chat:
    runtime: Runtime
    settings: Settings
    loaded: "LoadedModel"
    opened: "list[OpenDocument]"
    conversation: "Conversation"
    held: contextlib.ExitStack
    last_turn: tuple[str, str] | None = None  # a question and its answer
    cited: dict[str, Any] = field(default_factory=lambda: {"supported": None, "sources": []})


def run(docs: Sequence[str], all_documents: bool, settings: Settings, call: "Invocation") -> "Prompts":
    """A conversation, unless a worker is to hold it: then this exits."""
    call.delegate(settings.keep_alive)
    return converse(docs, all_documents, settings, call)


def converse(docs: Sequence[str], all_documents: bool, settings: Settings, call: "Invocation") -> "Prompts":
    """Yields prompts and is sent lines, None at their end. Answers go to stdout, all else to stderr."""
    with call.runtime() as runtime:
        chat = _open(docs, all_documents, settings, runtime)
        note(f"{', '.join(document.reader.manifest.source.name for document in chat.opened)}: ask, or /help")
        try:
            while (line := (yield PROMPT)) is not None and line.strip() not in ("/quit", "/exit"):
                try:
                    if line.strip().startswith("/"):
                        chat = _command(chat, *line.strip().split(maxsplit=1))
                    elif line.strip():
                        _answer(chat, line.strip(), call.check)
                except KeyboardInterrupt:  # before the answer began
                    note("")
                except OtherWorkerNeeded as error:
                    note(f"error: {error.message}; `actqkv chat --doc` begins another conversation")
                except ActqkvError as error:
                    note_error(error)
        finally:
            chat.held.close()


def _open(docs: Sequence[str], all_documents: bool, settings: Settings, runtime: Runtime) -> _Chat:
    """Documents and their model; the documents are locked, and stay open, until `held` is closed."""
    entries = documents(docs, all_documents, settings.home)
    with contextlib.ExitStack() as held:
        loaded, cache = held.enter_context(runtime.loaded(entries, settings, quiet=False))
        from actqkv_cli.engine.conversation import Conversation

        opened = held.enter_context(cache.pinned(entry.folder for entry in entries))
        return _Chat(runtime, settings, loaded, opened, Conversation(opened, loaded.model), held.pop_all())


def _answer(chat: _Chat, question: str, check: Check) -> None:
    from actqkv_cli.engine.answer import Sampling, decode
    from actqkv_cli.engine.session import session_over
    from actqkv_cli.model.prompt import encode_question

    settings, loaded = chat.settings, chat.loaded
    sampling = Sampling(settings.temperature, settings.top_p, settings.seed, settings.max_tokens)
    budget = budget_of(settings, chat.opened, chat.conversation.context.turn_blocks)
    encoded = encode_question(loaded.tokenizer, question, before=chat.last_turn)
    answer: list[str] = []

    def write(piece: str) -> None:
        answer.append(piece)
        write_out(piece)

    with session_over(loaded.model, chat.conversation.context, budget) as session:
        check()
        run = session.start(encoded, settings.policy, max_tokens=settings.max_tokens)
        # What is interrupted was said all the same.
        with contextlib.suppress(KeyboardInterrupt):
            decode(run, loaded.tokenizer, loaded.stop_tokens, sampling, without_trailing_space(write), check)
        chat.conversation.add(run)
    write_out("\n")
    chat.last_turn = question, "".join(answer)
    chat.cited = cited(run, chat.last_turn[1])
    pages = [f"{source['document']}, page {source['page']}" for source in chat.cited["sources"]]
    if chat.cited["supported"] is False:
        note("  Note: nothing of this answer stands in the sources.")
    note("  [" + "; ".join(dict.fromkeys(pages)) + "]\n" if pages else "")


def _command(chat: _Chat, name: str, value: str = "") -> _Chat:
    """Does what a line that begins with / says; returns the chat that goes on."""
    if name == "/sources":
        show_sources(**chat.cited)
    elif name == "/doc":
        if value:
            other = _open([value], False, chat.settings, chat.runtime)
            chat.held.close()
            chat = other
        for document in chat.opened:
            manifest = document.reader.manifest
            note(f"{manifest.id}  {manifest.source.name}  {manifest.tokens:,} tokens")
    elif name in ("/budget", "/policy"):
        if value:
            chat.settings = _changed(chat.settings, name[1:], value)
        if name == "/policy":
            note(f"policy: {chat.settings.policy}")
        else:
            note(f"budget: {budget_of(chat.settings, chat.opened, chat.conversation.context.turn_blocks)} tokens")
    elif name == "/help":
        note(_HELP)
    else:
        raise UsageError(f"there is no command {name}", "/help lists them")
    return chat


def _changed(settings: Settings, name: str, value: str) -> Settings:
    """Raises UsageError for a value that does not do."""
    from actqkv_cli.retrieval.policies import check_policy

    checked = getattr(load_settings(**{name: value}), name)
    if name == "policy":
        check_policy(value)
    return settings.model_copy(update={name: checked})
