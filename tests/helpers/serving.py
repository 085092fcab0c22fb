"""A server process of `actqkv serve`, and what clients do with it."""

import contextlib
import http.client
import json
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import openai
from sandbox import Sandbox, finish


@dataclass(frozen=True)
class Server:
    process: "subprocess.Popen[str]"
    url: str

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(**{"base_url": self.url, "api_key": "none", "max_retries": 0, "timeout": 60, **options})

    def send(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and JSON of a request as it stands. headers: beside, or in the place of, those that a client sends."""
        place = urlsplit(self.url)
        with contextlib.closing(http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)) as connection:
            connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
            reply = connection.getresponse()
            text = reply.read().decode()
            return reply.status, json.loads(text) if reply.headers["content-type"] == "application/json" else text


@contextlib.contextmanager
def running(box: Sandbox, *args: str) -> Iterator[Server]:
    """A server on a free port. It says its address and what failed, nothing else, and Ctrl-C must end it with 0."""
    process = box.start("serve", "--port", "0", "--device", "cpu", *args)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r" at (http://\S+/v1) ", line)
        assert found, line + process.stderr.read()
        yield Server(process, found[1].replace("0.0.0.0", "127.0.0.1"))
    finally:
        process.send_signal(signal.SIGINT)
        done = finish(process, timeout=30)
    assert (done.code, done.out) == (0, "")
    assert re.fullmatch(r"(error: .*\n)*stopped\n", done.err), done.err
