"""actqkv serve: the library's documents behind an endpoint as OpenAI's chat completions."""

import contextlib
import logging
import queue
import socket
import threading
from ipaddress import ip_address
from typing import TYPE_CHECKING

from actqkv_cli.config import Settings
from actqkv_cli.errors import ActqkvError, UsageError
from actqkv_cli.output import note
from actqkv_cli.runtime import Runtime

if TYPE_CHECKING:
    import uvicorn

    from actqkv_cli.serve.work import Jobs

_SHUTDOWN_TIMEOUT = 2  # seconds for answers that are on their way when it is to end


def run(host: str, port: int, doc: str | None, settings: Settings) -> None:
    """Serve until Ctrl-C. Port 0 is any free one. Raises UsageError, ActqkvError for a port in use, and what loading
    a model raises."""
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError:
        raise UsageError("serving needs starlette and uvicorn", 'pip install "actqkv[serve]"') from None
    from actqkv_cli.serve.app import make_app
    from actqkv_cli.serve.work import prepare, work

    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of clients that go away
    with contextlib.closing(_listen(host, port, settings)) as listener, Runtime() as runtime:
        settings = prepare(doc, settings, runtime)
        jobs: Jobs = queue.SimpleQueue()
        app = make_app(jobs, settings, ["localhost", "127.0.0.1", "[::1]", host])
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="critical", access_log=False, timeout_graceful_shutdown=_SHUTDOWN_TIMEOUT)
        )
        thread = threading.Thread(target=_serve, args=[server, listener, jobs])
        thread.start()
        try:
            note(f"serving {settings.home} with {settings.model} at {_url(host, listener)} (Ctrl-C ends)")
            work(jobs, settings, runtime)
            raise ActqkvError("the HTTP server has ended by itself")
        except KeyboardInterrupt:
            note("stopped")
        finally:
            server.should_exit = True
            thread.join()


def _listen(host: str, port: int, settings: Settings) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise UsageError(f"--host {host!r} is no address of this machine") from None
    if settings.token is None and not ip_address(address[0]).is_loopback:
        raise UsageError(
            f"{host} can be reached by others, who could all ask: it needs a token",
            "set ACTQKV_TOKEN or --token, which clients send as their API key",
        )
    try:
        return socket.create_server(address, family=family)
    except OSError as error:
        raise ActqkvError(
            f"cannot listen at {host}, port {port}: {error.strerror or error}", "choose another --port or --host"
        ) from error


def _url(host: str, listener: socket.socket) -> str:
    place = f"[{host}]" if ":" in host else host
    return f"http://{place}:{listener.getsockname()[1]}/v1"


def _serve(server: "uvicorn.Server", listener: socket.socket, jobs: "Jobs") -> None:
    try:
        server.run(sockets=[listener])
    finally:
        jobs.put(None)  # so that the model's thread does not wait for ever
