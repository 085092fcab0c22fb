"""The resident worker: carries out clients' commands one after the other, with what earlier ones have loaded.

All commands run on the main thread (torch keeps a pool of threads for every thread that calls it); a thread for each
connection only reads it. Output is the very same as in a process of the client's own, because it is the same code.
"""

import contextlib
import faulthandler
import io
import os
import queue
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from actqkv_cli import __version__
from actqkv_cli.errors import EXIT_INTERRUPTED
from actqkv_cli.worker import endpoint
from actqkv_cli.worker.protocol import Connection, difference, fingerprint

if TYPE_CHECKING:
    from actqkv_cli.invocation import Invocation, Prompts
    from actqkv_cli.runtime import Runtime

_FIRST_CLIENT = 60.0  # seconds for the client that started us to come
_TICK = 5.0  # seconds between looks at whether what is kept is still wanted
_SEND = 10.0  # seconds in which a client must read what it is sent


def main() -> None:
    """Serve until nobody has asked for as long as the last client said; at once nothing if another worker does."""
    try:
        worker = listen(Surroundings.now())
    except OSError as error:
        sys.exit(str(error))
    if worker:
        from actqkv_cli.runtime import Runtime  # after it listens: this imports what takes a moment

        with Runtime() as runtime:
            worker.serve(runtime)


@dataclass(frozen=True)
class Surroundings:
    """What a process was started with, before the libraries that it imports add to its environment."""

    environ: dict[str, str]
    fingerprint: dict[str, Any]

    @staticmethod
    def now() -> "Surroundings":
        return Surroundings(dict(os.environ), fingerprint())


def listen(surroundings: Surroundings, keep_alive: float = _FIRST_CLIENT) -> "Worker | None":
    """A worker that clients can connect to from now on; None if another is there. Raises OSError that says why not.

    keep_alive: seconds until it ends if nobody asks, who may say how long from then on.
    """
    path = endpoint.socket_path()
    if path is None:
        raise OSError("there can be no socket")
    endpoint.make_folder(path)
    lock = FileLock(path.with_suffix(".lock"), mode=0o600, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    worker = Worker(path, lock, surroundings, keep_alive)
    threading.Thread(target=worker.accept, daemon=True).start()
    return worker


def _listen(path: Path) -> socket.socket:
    """A socket that takes the place of a dead one, and is never there without listening."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(new))
    new.chmod(0o600)
    listener.listen(128)
    new.rename(path)
    return listener


class Client:
    """A connection, the command that came over it, and its conversation if it has begun one."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.gone = False
        self.request: dict[str, Any] = {}
        self.arrived = 0.0
        self.call: Invocation | None = None
        self.conversation: Prompts | None = None
        self.stopped = False  # what the command runs now is to end at its next check()

    def send(self, **frame: Any) -> None:
        self.gone = self.gone or not self.connection.send(**frame)

    def check(self) -> None:
        """See `terminal.Check`."""
        if self.gone or self.stopped:
            self.stopped = False
            raise KeyboardInterrupt


class Declined(Exception):
    """The client's settings want no worker."""


class Worker:
    """All that changes while a worker lives. `_retire` and what follows frames may run on any thread."""

    def __init__(self, path: Path, lock: FileLock, surroundings: Surroundings, keep_alive: float) -> None:
        self.current: Client | None = None
        self._path, self._lock = path, lock
        self._fingerprint = surroundings.fingerprint
        self._environ = surroundings.environ  # the last client's
        self._jobs: queue.SimpleQueue[tuple[Client, str | None]] = queue.SimpleQueue()
        self._talking: set[Client] = set()
        self._retiring = threading.Lock()
        self._retired = self._stopping = False
        self._keep_alive = keep_alive
        self._began = self._last = time.monotonic()
        self._served = 0
        self._loaded: dict[str, Any] = {"model": None, "documents": []}  # as long as it imports
        self._listener = _listen(path)
        self._file = path.lstat()
        self._streams = _Output(self, "out"), _Output(self, "err")

    def serve(self, runtime: "Runtime") -> None:
        """Answer with what this holds, and keep in it what is loaded. stderr is the log."""
        with contextlib.suppress(OSError):  # where it is no file
            os.ftruncate(2, 0)
        faulthandler.enable(2)
        while self._wanted():
            self._loaded = runtime.status()
            try:
                patience = _TICK if self._talking else min(_TICK, max(0, self._remaining()))
                client, line = self._jobs.get(timeout=patience)
            except queue.Empty:
                runtime.prune()
            else:
                self._do(client, line, runtime)
        self._retire("its time was up")

    def _wanted(self) -> bool:
        if self._talking or not self._jobs.empty():
            return True
        return not self._retired and self._remaining() > 0

    def _remaining(self) -> float:
        """Seconds until nobody has asked for too long."""
        return self._last + self._keep_alive - time.monotonic()

    def _retire(self, reason: str) -> None:
        """Make way for another worker; what has begun is still carried out."""
        with self._retiring:
            if self._retired:
                return
            self._retired = True
            print(f"actqkv worker {os.getpid()} takes no more clients: {reason}", file=sys.__stderr__)
            with contextlib.suppress(OSError):
                # The folder may have been cleaned up, our lock with it, and the socket be another worker's.
                if os.path.samestat(self._path.lstat(), self._file):
                    self._path.unlink()
            self._lock.release()
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()

    # What happens on the threads that read.

    def accept(self) -> None:
        """Take clients, whose commands then wait for `serve`."""
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                if self._retired:
                    return
                time.sleep(0.1)  # no file descriptor free, say
                continue
            threading.Thread(target=self._read, args=[Client(Connection(sock))], daemon=True).start()

    def _read(self, client: Client) -> None:
        with contextlib.suppress(OSError):  # it has gone already
            if not self._retired and client.connection.is_of_this_user():
                client.connection.set_timeouts(send=_SEND)
                self._follow(client)
        client.gone = True
        self._jobs.put((client, None))  # its conversation ends on the thread on which it lives

    def _follow(self, client: Client) -> None:
        while frame := client.connection.receive():
            if "run" in frame:
                self._take(client, frame)
            elif "line" in frame:
                client.stopped = False  # a Ctrl-C that came too late for the step before is not meant for the next
                self._jobs.put((client, frame["line"]))
            elif "stop" in frame:
                client.stopped = True
            elif "status" in frame:
                client.send(status=self._status())
            elif "shutdown" in frame:
                self._shut_down(client)

    def _take(self, client: Client, frame: dict[str, Any]) -> None:
        other = difference(self._fingerprint, frame.get("fingerprint", {}))
        if other:
            self._retire(f"a client has another {other}")
        if self._retired:
            client.send(replaced=other or "this worker is about to end")
            return
        client.request, client.arrived = frame["run"], time.perf_counter()
        self._jobs.put((client, None))

    def _shut_down(self, client: Client) -> None:
        self._retire("it was told to stop")
        self._stopping = True
        if current := self.current:
            current.stopped = True
        self._jobs.put((client, None))  # wakes the main thread

    def _status(self) -> dict[str, Any]:
        import psutil  # not before it listens

        now = time.monotonic()
        busy = self.current is not None
        return {
            "pid": os.getpid(),
            "version": __version__,
            "uptime_seconds": round(now - self._began, 1),
            "idle_seconds": 0.0 if busy else round(now - self._last, 1),
            "remaining_seconds": None if busy or self._talking else round(max(0.0, self._remaining()), 1),
            "served": self._served,
            "busy": busy,
            "conversations": len(self._talking),
            "waiting": self._jobs.qsize(),
            "memory_bytes": psutil.Process().memory_info().rss,
            **self._loaded,
        }

    # What happens on the main thread.

    def _do(self, client: Client, line: str | None, runtime: "Runtime") -> None:
        if self._stopping:
            for talking in [*self._talking]:
                talking.send(err="error: the worker was stopped\n", exit=1)
                self._end(talking)
        if client.gone or not client.request:
            self._end(client)
        elif self._stopping:
            client.send(replaced="this worker was stopped")
        else:
            self._served += 1  # before its client knows that it was
            self._serve(client, line, runtime)
            self._last = time.monotonic()

    def _serve(self, client: Client, line: str | None, runtime: "Runtime") -> None:
        """A client's command up to its end, or to where it asks for a line."""
        from actqkv_cli.runtime import OtherWorkerNeeded

        client.send(begun=True)
        self.current = client
        sys.stdout, sys.stderr = self._streams
        try:
            outcome = self._step(client, line, runtime)
        except Declined:
            client.send(declined=True)
        except OtherWorkerNeeded as reason:
            self._retire(reason.message)
            client.send(replaced=reason.message)
        except KeyboardInterrupt:
            client.send(exit=EXIT_INTERRUPTED)
        except Exception:
            traceback.print_exc()
            client.send(exit=1)
        else:
            if isinstance(outcome, str):
                client.send(prompt=outcome)
                self._talking.add(client)
                return
            client.send(exit=outcome)
        finally:
            self.current = None
            os.chdir("/")  # so that no client's disk is kept from being unmounted
        self._end(client)

    def _step(self, client: Client, line: str | None, runtime: "Runtime") -> int | str:
        from actqkv_cli import invocation
        from actqkv_cli.runtime import OtherWorkerNeeded

        self._enter_surroundings(client.request)
        if client.conversation is not None and client.call is not None:
            return invocation.next_prompt(client.call, client.conversation, line)
        client.call = invocation.Invocation(
            client.request["argv"],
            client.arrived,
            self._accept_keep_alive,
            lambda: contextlib.nullcontext(runtime),
            client.check,
            reraised=(Declined, OtherWorkerNeeded),
        )
        outcome = invocation.start(client.call)
        if isinstance(outcome, int):
            return outcome
        client.conversation = outcome
        return invocation.next_prompt(client.call, client.conversation, None)

    def _accept_keep_alive(self, keep_alive: float) -> None:
        if keep_alive <= 0:
            raise Declined
        self._keep_alive = keep_alive

    def _enter_surroundings(self, request: dict[str, Any]) -> None:
        """The client's environment and folder. What a library has put into the environment for itself stays."""
        new = request["environ"]
        for name in self._environ.keys() - new.keys():
            os.environ.pop(name, None)
        os.environ.update({name: value for name, value in new.items() if self._environ.get(name) != value})
        self._environ = new
        sys.stdin = io.TextIOWrapper(_Input(request), encoding="utf-8", errors="surrogateescape")
        with contextlib.suppress(OSError):  # the client may sit in a folder that is no more
            os.chdir(request["cwd"])

    def _end(self, client: Client) -> None:
        if client.conversation is not None:
            try:
                client.conversation.close()
            except BaseException:
                traceback.print_exc()
        client.conversation, client.request = None, {}
        self._talking.discard(client)
        if client.gone:
            client.connection.close()


class _Output(io.TextIOBase):
    """Goes to the client that is served now, and to the log if none is. What a client that has gone is told is lost.

    Writing never raises: it may happen in the midst of something, and check() ends that at a safe point soon enough.
    """

    encoding = "utf-8"

    def __init__(self, worker: Worker, name: str) -> None:
        self._worker, self._name = worker, name

    def write(self, text: str) -> int:
        if client := self._worker.current:
            client.send(**{self._name: text})
        elif sys.__stderr__:
            sys.__stderr__.write(text)
        return len(text)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        client = self._worker.current
        return client is not None and bool(client.request["terminal"][self._name])


class _Input(io.BytesIO):
    """What the client read from its stdin."""

    def __init__(self, request: dict[str, Any]) -> None:
        super().__init__(request["stdin"].encode("utf-8", "surrogateescape"))
        self._terminal = bool(request["terminal"]["in"])

    def isatty(self) -> bool:
        return self._terminal
