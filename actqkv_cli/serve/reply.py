"""Answers and errors as OpenAI's clients expect them, with the sources beside."""

import json
import time
import uuid
from typing import Any

from actqkv_cli.errors import ActqkvError

_STATUS = {"usage": 400, "no_such_document": 404, "identity_mismatch": 409, "stopping": 503}  # by kind, else 500
_FINISH = {"repetition": "stop"}  # what OpenAI's clients do not know
DONE = "data: [DONE]\n\n"


class Reply:
    """What one request is answered with, whole or in chunks. model: its name in them."""

    def __init__(self, model: str) -> None:
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": None,
        }

    def whole(self, record: dict[str, Any]) -> dict[str, Any]:
        """record: as `answering.record` makes it."""
        message = {"role": "assistant", "content": record["answer"], "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(record)}
        head = {**self._head, "object": "chat.completion", "choices": [choice]}
        return {**head, "usage": _usage(record), **_beside(record)}

    def chunk(self, **delta: str) -> dict[str, Any]:
        """A chunk that adds `delta` to the message."""
        return self._chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}])

    def last(self, record: dict[str, Any]) -> dict[str, Any]:
        """The chunk that ends the message; record: as of `whole`."""
        choice = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": _finish(record)}
        return {**self._chunk([choice]), **_beside(record)}

    def usage(self, record: dict[str, Any]) -> dict[str, Any]:
        """The chunk behind the last one."""
        return {**self._chunk([]), "usage": _usage(record)}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "choices": choices}


def _finish(record: dict[str, Any]) -> str:
    finish: str = record["finish"]
    return _FINISH.get(finish, finish)


def _usage(record: dict[str, Any]) -> dict[str, Any]:
    """The document counts as a prompt that was cached."""
    used = record["usage"]
    prompt = used["document_tokens"] + used["question_tokens"]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": used["answer_tokens"],
        "total_tokens": prompt + used["answer_tokens"],
        "prompt_tokens_details": {"cached_tokens": used["document_tokens"]},
    }


def _beside(record: dict[str, Any]) -> dict[str, Any]:
    """What OpenAI's answers do not have: the sources, and how they were found."""
    how = ("finish", "answered", "confidence", "supported", "documents", "policy", "budget", "seed", "usage", "version")
    return {"sources": record["sources"], "actqkv": {name: record[name] for name in how}}


def event(value: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


def problem(status: int, message: str, code: str) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def failure(error: ActqkvError) -> tuple[int, dict[str, Any]]:
    """Status and body for a failure of ours."""
    status = _STATUS.get(error.kind, 500)
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    return status, problem(status, message, error.kind)
