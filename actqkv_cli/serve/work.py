"""What touches the model: one request after the other, on one thread, for torch has a pool of threads for each."""

import asyncio
import os
import queue
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actqkv_cli.answering import budget_of, bytes_read, documents, record, without_trailing_space
from actqkv_cli.config import Settings
from actqkv_cli.errors import ActqkvError, IdentityMismatch, UsageError
from actqkv_cli.failures import foreseen
from actqkv_cli.runtime import OtherWorkerNeeded, Runtime
from actqkv_cli.serve.request import LATEST, ChatRequest, conversation
from actqkv_cli.store.library import Entry

if TYPE_CHECKING:
    from actqkv_cli.engine.answer import Answer, Sampling
    from actqkv_cli.engine.run import Run
    from actqkv_cli.model.load import LoadedModel
    from actqkv_cli.model.prompt import EncodedQuestion


@dataclass(frozen=True)
class Started:
    """The question was read, and text follows. documents: their ids."""

    documents: list[str]


Event = Started | str | dict[str, Any]
"""Of an answer, in this order: that it has begun, pieces of text, the record."""


class Stopping(ActqkvError):
    kind = "stopping"


class Gone(Exception):
    """Nobody waits for the answer any more."""


class Job:
    """A request on its way to the model's thread, and what that thread tells of it to the event loop's."""

    def __init__(self, request: ChatRequest) -> None:
        self.request = request
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self._stopped = False

    def stop(self) -> None:
        """Nobody waits for it any more."""
        self._stopped = True
        self._events.put_nowait(Gone())

    async def next(self) -> Event:
        """Raises ActqkvError where the answer failed, and Gone when it was stopped."""
        event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        return event

    def check(self) -> None:
        """On the model's thread: raises Gone if it was stopped."""
        if self._stopped:
            raise Gone

    def send(self, event: Event | Exception) -> None:
        """On the model's thread."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)


Jobs = queue.SimpleQueue[Job | None]


def prepare(doc: str | None, settings: Settings, runtime: Runtime) -> Settings:
    """Load the model of a document, and open it; returns the settings with that model, which from then on is the only
    one. Raises what these raise."""
    entries = documents([doc] if doc else [], False, settings.home)
    with (
        runtime.loaded(entries, settings, quiet=False) as (loaded, cache),
        cache.pinned(entry.folder for entry in entries),
    ):
        return settings.model_copy(update={"model": loaded.files.name})


def work(jobs: Jobs, settings: Settings, runtime: Runtime) -> None:
    """Do jobs until there is a None. What interrupts it is told to those who wait."""
    job: Job | None = None
    try:
        while job := jobs.get():
            _do(job, settings, runtime)
    except KeyboardInterrupt:
        while job:
            job.send(Stopping("the server was stopped"))
            job = None if jobs.empty() else jobs.get()
        raise


def _do(job: Job, settings: Settings, runtime: Runtime) -> None:
    try:
        job.check()
        job.send(_answer(job, settings, runtime))
    except Gone:
        pass
    except OtherWorkerNeeded as error:
        job.send(IdentityMismatch(error.message, "another `actqkv serve --doc` can serve it, on another --port"))
    except Exception as error:
        if os.environ.get("ACTQKV_DEBUG"):
            traceback.print_exc()
        job.send(foreseen(error))


def _answer(job: Job, settings: Settings, runtime: Runtime) -> dict[str, Any]:
    from actqkv_cli.engine.answer import Sampling
    from actqkv_cli.engine.session import session_over
    from actqkv_cli.model.prompt import encode_turns

    runtime.prune()
    request = job.request
    settings = request.settings(settings)
    entries = _documents(request, settings)
    instruction, turns, question = conversation(request.messages)
    with (
        runtime.loaded(entries, settings, quiet=True) as (loaded, cache),
        cache.pinned(entry.folder for entry in entries) as opened,
    ):
        budget = budget_of(settings, opened)
        encoded = encode_turns(loaded.tokenizer, turns, question, instruction)
        _check_room(loaded, encoded, budget, settings.max_tokens)
        sampling = Sampling(settings.temperature, settings.top_p, settings.seed, settings.max_tokens)
        with session_over(loaded.model, cache.context_of(opened), budget) as session:
            run = session.start(encoded, settings.policy, max_tokens=settings.max_tokens)
            job.send(Started([entry.id for entry in entries]))
            answer = _decode(job, run, loaded, sampling)
        result = record(run, answer, opened, settings.policy, budget, settings.seed)
        result["usage"]["bytes_read"] = bytes_read(opened)
        return result


def _documents(request: ChatRequest, settings: Settings) -> list[Entry]:
    """Raises what `find` raises."""
    if request.documents == "all":
        return documents([], True, settings.home)
    names = [request.model] if request.documents is None else request.documents
    return documents([None if name in LATEST else name for name in names], False, settings.home)


def _check_room(loaded: "LoadedModel", encoded: "EncodedQuestion", budget: int, max_tokens: int) -> None:
    """Raises UsageError if the question's and the answer's positions would leave the range that the model knows."""
    window, tokens = loaded.model.config.max_position_embeddings, len(encoded.ids)
    if budget + tokens + max_tokens > window:
        raise UsageError(
            f"the messages ({tokens:,} tokens) and max_tokens ({max_tokens:,}) do not fit into the model's window of "
            f"{window:,} tokens, of which the budget takes {budget:,}"
        )


def _decode(job: Job, run: "Run", loaded: "LoadedModel", sampling: "Sampling") -> "Answer":
    """Tells the text as it comes."""
    from actqkv_cli.engine.answer import Answer, decode

    sent, tokens = "", 1

    def send(piece: str) -> None:
        nonlocal sent
        sent += piece
        job.send(piece)

    def check() -> None:
        nonlocal tokens
        job.check()
        tokens += 1

    write = stop_at(job.request.stop, without_trailing_space(send))
    try:
        answer = decode(run, loaded.tokenizer, loaded.stop_tokens, sampling, write, check)
    except StopFound:
        return Answer(sent, tokens, "stop")
    if rest := answer.text[len(sent) :]:
        job.send(rest)
    return answer


class StopFound(Exception):
    """The answer has come to a text that ends it."""


def stop_at(stops: Sequence[str], write: Callable[[str], None]) -> Callable[[str], None]:
    """Writes text up to where one of `stops` begins, and raises StopFound there.

    The end of a text that may be the beginning of one is held back until more comes.
    """
    held = ""

    def take(piece: str) -> None:
        nonlocal held
        held += piece
        places = [place for stop in stops if (place := held.find(stop)) >= 0]
        partial = (length for stop in stops for length in range(1, len(stop)) if held.endswith(stop[:length]))
        end = min(places) if places else len(held) - max(partial, default=0)
        write(held[:end])
        held = held[end:]
        if places:
            raise StopFound

    return take
