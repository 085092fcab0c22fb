"""The ASGI application: routes, who may use them, and answers as JSON or as a stream of events."""

import asyncio
import hmac
from collections.abc import AsyncIterator, Sequence
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from actqkv_cli.config import Settings
from actqkv_cli.errors import ActqkvError
from actqkv_cli.failures import foreseen
from actqkv_cli.output import note
from actqkv_cli.serve.reply import DONE, Reply, event, failure, problem
from actqkv_cli.serve.request import LATEST, parse
from actqkv_cli.serve.work import Gone, Job, Jobs, Started
from actqkv_cli.store.library import Entry, find, list_entries

_MAX_BODY_BYTES = 1 << 20  # bytes of a request's body


def make_app(jobs: Jobs, settings: Settings, hosts: Sequence[str]) -> Starlette:
    """jobs: where requests are put for the model's thread. hosts: names of this machine that a browser may call us by,
    where there is no token.

    A page of the web can reach the loopback in its reader's browser: as a host of its own that resolves to it, which
    the Host header tells, or blindly, but not with a body of JSON unless we allowed it.
    """
    token = settings.token
    guard = (
        Middleware(_Bearer, token=token.get_secret_value())
        if token
        else Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    )

    async def complete(request: Request) -> Response:
        job = Job(parse(await _body(request)))
        jobs.put(job)
        watch = asyncio.create_task(_stop_when_gone(request, job))
        try:
            started = await job.next()
            assert isinstance(started, Started)
            reply = Reply(started.documents[0] if len(started.documents) == 1 else job.request.model)
            if job.request.stream:
                return _Stream(job, reply)
            while not isinstance(record := await job.next(), dict):
                pass
            return JSONResponse(reply.whole(record))
        except asyncio.CancelledError:
            job.stop()
            raise
        finally:
            watch.cancel()

    def models(request: Request) -> Response:
        whole = [_model(entry) for entry in list_entries(settings.home) if entry.manifest is not None]
        return JSONResponse({"object": "list", "data": whole})

    def model(request: Request) -> Response:
        name = request.path_params["name"]
        return JSONResponse(_model(find(settings.home, None if name in LATEST else name)))

    return Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/v1/chat/completions", complete, methods=["POST"]),
        ],
        middleware=[guard],
        exception_handlers={
            ActqkvError: _failed,
            HTTPException: _refused,
            ClientDisconnect: _nobody,
            Gone: _nobody,
            Exception: _failed,
        },
    )


async def _body(request: Request) -> bytes:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "the body must be JSON, and say so: Content-Type: application/json")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MAX_BODY_BYTES:
            raise HTTPException(413, f"the body is longer than {_MAX_BODY_BYTES:,} bytes")
    return bytes(body)


async def _stop_when_gone(request: Request, job: Job) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.stop()


class _Stream(StreamingResponse):
    """The events of a job, which is stopped however this ends."""

    def __init__(self, job: Job, reply: Reply) -> None:
        super().__init__(_events(job, reply), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.stop()


async def _events(job: Job, reply: Reply) -> AsyncIterator[str]:
    yield event(reply.chunk(role="assistant", content=""))
    try:
        while isinstance(piece := await job.next(), str):
            yield event(reply.chunk(content=piece))
    except ActqkvError as error:
        yield event(_described(error)[1])
        return
    assert isinstance(piece, dict)
    yield event(reply.last(piece))
    if job.request.stream_options.include_usage:
        yield event(reply.usage(piece))
    yield DONE


def _model(entry: Entry) -> dict[str, Any]:
    fields = {"id": entry.id, "object": "model", "created": int(entry.modified), "owned_by": "actqkv"}
    return {**fields, "name": entry.name, "tokens": entry.manifest.tokens if entry.manifest else 0}


def _described(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body of a failure; what the server's owner should know of is told here too."""
    known = foreseen(error)
    status, body = failure(known)
    if status == 500:
        note(f"error: {known.message}")
    return status, body


def _failed(request: Request, error: Exception) -> Response:
    status, body = _described(error)
    return JSONResponse(body, status)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).name.lower()
    return JSONResponse(problem(error.status_code, error.detail, code), error.status_code, error.headers)


def _nobody(request: Request, error: Exception) -> Response:
    """Nobody reads this."""
    return Response(status_code=400)


class _Bearer:
    """Lets through only those who show the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scheme, _, credential = Headers(scope=scope).get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(credential.strip().encode("latin-1"), self._token):
                body = problem(401, "the token is missing or wrong", "invalid_api_key")
                await JSONResponse(body, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
                return
        await self._app(scope, receive, send)
