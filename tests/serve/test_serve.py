"""actqkv serve as a process, asked by OpenAI's own client."""

import json
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam
from sandbox import Sandbox
from serving import Server, running

QUESTION = "Who built the lighthouse at Carrow Point?"
LENGTH: dict[str, Any] = {"max_tokens": 24}
USER: ChatCompletionUserMessageParam = {"role": "user", "content": QUESTION}


def asked(server: Server, text: str = QUESTION, model: str = "latest", **more: Any) -> Any:
    """The answer's text and its sources."""
    messages = more.pop("messages", [{"role": "user", "content": text}])
    done = server.client().chat.completions.create(**{"model": model, "messages": messages, **LENGTH, **more})
    return done.choices[0].message.content, done.model_extra["sources"]


def streamed(server: Server, text: str = QUESTION, model: str = "latest", **more: Any) -> Any:
    chunks = chunks_of(server, text, model, **more)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    (sources,) = [chunk.model_extra["sources"] for chunk in chunks if "sources" in chunk.model_extra]
    return "".join(pieces), sources


def chunks_of(server: Server, text: str = QUESTION, model: str = "latest", **more: Any) -> list[Any]:
    messages = [{"role": "user", "content": text}]
    return list(
        server.client().chat.completions.create(
            **{"model": model, "messages": messages, "stream": True, **LENGTH, **more}
        )
    )


def refused(server: Server, **fields: Any) -> tuple[int, dict[str, Any]]:
    status, body = server.send(
        "POST", "/v1/chat/completions", json.dumps({"model": "latest", "messages": [USER], **fields}).encode()
    )
    return status, body["error"]


def test_models_are_the_whole_documents_the_latest_first(server: Server, shelf: Sandbox) -> None:
    client = server.client()
    found = list(client.models.list())
    assert found[0].id == shelf.folder("handbook").name
    assert {model.id for model in found[1:]} == {shelf.folder("log").name, "alien-00000000", "broken-00000000"}
    assert all(model.object == "model" and model.created > 1.7e9 for model in found)
    assert client.models.retrieve("latest") == found[0]
    assert client.models.retrieve("log.txt").id == shelf.folder("log").name


def test_an_answer_is_that_of_ask(server: Server, shelf: Sandbox) -> None:
    command = shelf.run("ask", QUESTION, "--device", "cpu", "--max-tokens", "24", "--json").json
    done = server.client().chat.completions.create(model="handbook", messages=[USER], **LENGTH)
    (choice,) = done.choices
    assert (choice.message.role, choice.message.content) == ("assistant", command["answer"])
    assert choice.finish_reason == command["finish"]
    assert (done.object, done.model) == ("chat.completion", shelf.folder("handbook").name)
    assert done.model_extra["sources"] == command["sources"] != []
    used = command["usage"]
    assert done.usage.completion_tokens == used["answer_tokens"]
    assert done.usage.prompt_tokens == used["document_tokens"] + used["question_tokens"]
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert done.usage.prompt_tokens_details.cached_tokens == used["document_tokens"]
    how = done.model_extra["actqkv"]
    assert {name: how[name] for name in ("documents", "policy", "budget", "version")} == {
        name: command[name] for name in ("documents", "policy", "budget", "version")
    }


def test_a_stream_is_the_same_in_pieces(server: Server) -> None:
    assert streamed(server) == asked(server)
    chunks = chunks_of(server, stream_options={"include_usage": True})
    assert {(chunk.object, chunk.id, chunk.model) for chunk in chunks} == {
        ("chat.completion.chunk", chunks[0].id, chunks[0].model)
    }
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-2]] == [None] * (len(chunks) - 2)
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-2].model_extra["sources"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 24
    assert len(chunks) > 10
    body = json.dumps({"model": "latest", "messages": [USER], "stream": True, **LENGTH}).encode()
    status, text = server.send("POST", "/v1/chat/completions", body)
    assert status == 200
    assert text.endswith("\n\ndata: [DONE]\n\n")


def test_documents_are_chosen_by_name_or_field_and_asked_as_one(server: Server, shelf: Sandbox) -> None:
    log, handbook = (shelf.folder(name).name for name in ("log", "handbook"))
    alone = asked(server, model=log)
    assert alone == asked(server, extra_body={"documents": ["log.txt"]})
    assert alone != asked(server) == asked(server, model="actqkv")
    done = server.client().chat.completions.create(
        model="both", messages=[USER], **LENGTH, extra_body={"documents": ["handbook", log, "latest"]}
    )
    assert (done.model, done.model_extra["actqkv"]["documents"]) == ("both", [handbook, log])
    assert {source["id"] for source in done.model_extra["sources"]} <= {handbook, log}


def test_fields_do_what_they_say(server: Server) -> None:
    text, _ = asked(server)
    done = server.client().chat.completions.create(
        model="latest", messages=[USER], max_completion_tokens=5, extra_body={"policy": "streaming", "budget": 1024}
    )
    assert done.usage
    assert done.model_extra
    assert (done.usage.completion_tokens, done.choices[0].finish_reason) == (5, "length")
    assert (done.model_extra["actqkv"]["policy"], done.model_extra["actqkv"]["budget"]) == ("streaming", 1024)
    drawn = [asked(server, temperature=1.5, top_p=0.9, seed=seed)[0] for seed in (7, 7, 8)]
    assert drawn[0] == drawn[1] != drawn[2]
    neutral: dict[str, Any] = {"n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "user": "me", "tools": []}
    assert asked(server, **neutral, logit_bias=None)[0] == text
    parts = [{"type": "text", "text": part} for part in QUESTION.split(" at ")]
    assert asked(server, messages=[{"role": "user", "content": parts}])[0]


def test_an_answer_ends_before_a_stop(server: Server) -> None:
    text, _ = asked(server)
    middle = len(text) // 2
    stop = text[middle : middle + 3]
    expected = text[: text.index(stop)].rstrip()
    for ask in (asked, streamed):
        assert ask(server, stop=stop)[0] == expected
        assert ask(server, stop=["nowhere in it", stop])[0] == expected
        assert ask(server, stop="nowhere in it")[0] == text
    done = server.client().chat.completions.create(model="latest", messages=[USER], stop=stop, **LENGTH)
    assert done.choices[0].finish_reason == "stop"
    assert 0 < done.usage.completion_tokens < 24


def test_earlier_turns_and_instructions_are_taken_into_account(server: Server) -> None:
    first, _ = asked(server)
    turns = [USER, {"role": "assistant", "content": first}, {"role": "user", "content": "And when?"}]
    after = asked(server, messages=turns)
    assert after == streamed(server, messages=turns)
    other = [USER, {"role": "assistant", "content": "Nobody."}, turns[2]]
    assert len({after[0], asked(server, messages=other)[0], asked(server, "And when?")[0]}) == 3
    system = [{"role": "system", "content": "Answer in Latin, at length, with the names of birds."}, USER]
    assert asked(server, messages=system)[0] != first


def test_two_at_once_get_their_own_answers(server: Server, shelf: Sandbox) -> None:
    log = shelf.folder("log").name
    questions = [QUESTION, "What is the fog horn called?", "Who keeps the log?", "When is Land Day?"]
    jobs = [(text, model) for text in questions for model in (log, "latest")]
    expected = [asked(server, *job) for job in jobs]
    assert len(set(map(repr, expected))) == len(jobs)
    found: dict[int, Any] = {}

    def client(number: int, ask: Any) -> None:
        for at, job in enumerate(jobs):
            if at % 4 == number:
                found[at] = ask(server, *job)

    threads = [threading.Thread(target=client, args=[n, (asked, streamed)[n % 2]]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[at] for at in range(len(jobs))] == expected


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_stops_its_answer_and_no_other(server: Server, stream: bool) -> None:
    expected, client = asked(server), server.client()
    began = time.perf_counter()
    if stream:
        with client.chat.completions.create(model="latest", messages=[USER], stream=True, max_tokens=3000) as chunks:
            for _ in zip(range(60), chunks, strict=False):
                pass
            assert len(list(client.models.list())) == 4  # while the model is at work
    else:
        with pytest.raises(openai.APITimeoutError):
            server.client(timeout=0.5).chat.completions.create(model="latest", messages=[USER], max_tokens=3000)
    left = time.perf_counter()
    assert asked(server) == expected
    # 3,000 tokens take many times what the 60, or the half second, and the 24 of the next answer took.
    assert time.perf_counter() - left < 5 * (left - began)


def test_what_is_not_to_be_had(server: Server) -> None:
    client = server.client()
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4o", messages=[USER])
    assert unknown.value.code == "no_such_document"
    assert "gpt-4o" in unknown.value.message
    assert "handbook" in unknown.value.message  # what there is
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")
    with pytest.raises(openai.ConflictError) as other:
        client.chat.completions.create(model="alien", messages=[USER])
    assert other.value.code == "identity_mismatch"
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as broken:
            client.chat.completions.create(model="broken", messages=[USER], stream=stream)
        assert (broken.value.status_code, broken.value.code) == (500, "store_damaged")
    with pytest.raises(openai.InternalServerError) as torn:
        client.chat.completions.create(model="torn", messages=[USER])
    assert torn.value.code == "store_damaged"
    assert asked(server)[0]


BAD: dict[str, tuple[bytes | dict[str, Any], str]] = {
    "not JSON": (b"{", "JSON"),
    "not UTF-8": (b'{"model": "\xff\xfe"}', "JSON"),
    "half a character": (b'{"model": "\\ud800", "messages": []}', "JSON"),
    "too deep": (b"[" * 100_000, "JSON"),
    "no object": (b"[]", "object"),
    "nothing": (b"", "JSON"),
    "no messages": ({"messages": None}, "messages"),
    "no question": ({"messages": []}, "messages"),
    "an empty question": ({"messages": [{"role": "user", "content": " \n"}]}, "empty"),
    "two questions": ({"messages": [USER, USER]}, "in turn"),
    "an answer last": ({"messages": [USER, {"role": "assistant", "content": "x"}]}, "the last of user"),
    "only a system message": ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
    "another role": ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    "a picture": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type"),
    "no text": ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    "tool calls": ({"messages": [{**USER, "tool_calls": [{}]}]}, "tool_calls"),
    "no model": ({"model": None}, "model"),
    "a model by number": ({"model": 5}, "model"),
    "a model without a name": ({"model": ""}, "empty"),
    "several answers": ({"n": 2}, "n is not supported"),
    "tools": ({"tools": [{"type": "function"}]}, "tools is not supported"),
    "a format": ({"response_format": {"type": "json_object"}}, "response_format"),
    "a penalty": ({"frequency_penalty": 0.5}, "frequency_penalty"),
    "log probabilities": ({"logprobs": True}, "logprobs"),
    "an unknown field": ({"bugdet": 1024}, "bugdet"),
    "an unknown policy": ({"policy": "guess"}, "guess"),
    "a policy whose tensors were not kept": ({"policy": "h2o"}, "baselines"),
    "a policy for one document": ({"policy": "acre", "documents": ["handbook", "log.txt"]}, "one document"),
    "a small budget": ({"budget": 5}, "budget"),
    "a budget in words": ({"budget": "much"}, "budget"),
    "no tokens": ({"max_tokens": 0}, "max_tokens"),
    "tokens in words": ({"max_tokens": "24"}, "max_tokens"),
    "more than the window": ({"max_tokens": 4000}, "window"),
    "a question beyond the window": ({"messages": [{"role": "user", "content": "fog " * 9000}]}, "window"),
    "too cold": ({"temperature": -1}, "temperature"),
    "too hot": (b'{"model": "latest", "messages": [{"role": "user", "content": "x"}], "temperature": Infinity}', ""),
    "no share": ({"top_p": 0}, "top_p"),
    "a huge seed": ({"seed": 1 << 70}, "seed"),
    "an empty stop": ({"stop": ""}, "stop"),
    "many stops": ({"stop": list("abcde")}, "stop"),
    "very many documents": ({"documents": ["handbook"] * 101}, "documents"),
    "no documents": ({"documents": []}, "documents"),
    "documents by number": ({"documents": [5]}, "documents"),
    "one of two unknown": ({"documents": ["handbook", "nowhere"]}, "nowhere"),
    "too many that fit": ({"model": ".txt"}, "3 documents match"),
    "a stream in words": ({"stream": "yes"}, "stream"),
    "stream options": ({"stream_options": {"include_sources": True}}, "stream_options"),
}


def test_bad_bodies_are_refused_with_what_is_wrong(server: Server) -> None:
    for case, (fields, told) in BAD.items():
        raw = fields if isinstance(fields, bytes) else json.dumps({"model": "latest", "messages": [USER], **fields})
        body = raw if isinstance(raw, bytes) else raw.encode()
        status, reply = server.send("POST", "/v1/chat/completions", body)
        assert status == (404 if case == "one of two unknown" else 400), (case, reply)
        assert told in reply["error"]["message"], case
        assert reply["error"]["type"] == "invalid_request_error", case
    assert asked(server)[0]


def test_http_that_does_not_fit(server: Server) -> None:
    path, body = "/v1/chat/completions", json.dumps({"model": "latest", "messages": [USER]}).encode()
    for status, method, place, sent, headers in [
        (404, "GET", "/", None, {}),
        (404, "POST", "/v1/completions", body, {}),
        (405, "GET", path, None, {}),
        (415, "POST", path, body, {"Content-Type": "text/plain"}),
        (415, "POST", path, body, {"Content-Type": ""}),
        (413, "POST", path, b" " * (1 << 21), {}),
    ]:
        found, reply = server.send(method, place, sent, headers)
        assert found == status
        assert reply["error"]["message"]


def test_a_page_of_the_web_can_do_nothing(server: Server) -> None:
    """Neither under a name of its own that resolves to the loopback, nor by asking to be allowed."""
    port = server.url.rsplit(":", 1)[1].split("/")[0]
    for host in ("localhost", f"localhost:{port}", f"[::1]:{port}", "127.0.0.1"):
        assert server.send("GET", "/v1/models", headers={"Host": host})[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "localhost.evil.example", "127.0.0.1.nip.io", ""):
        assert server.send("GET", "/v1/models", headers={"Host": host})[0] == 400
    asks = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert server.send("OPTIONS", "/v1/chat/completions", headers=asks)[0] == 405


def test_with_a_token_anyone_may_come_who_shows_it_until_ctrl_c(shelf: Sandbox) -> None:
    box = shelf.with_env(ACTQKV_TOKEN="open sesame")
    with running(box, "--host", "0.0.0.0", "--doc", "log.txt") as server:
        for key in ("none", "open sesam", "open sesame!", "Open sesame"):
            with pytest.raises(openai.AuthenticationError) as error:
                server.client(api_key=key).models.list()
            assert error.value.code == "invalid_api_key"
        for shown in (None, "", "open sesame", "Basic open sesame", "Bearer", "Bearer \xfe"):
            for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/")):
                status, reply = server.send(method, path, headers={"Authorization": shown} if shown else {})
                assert (status, reply["error"]["code"]) == (401, "invalid_api_key")
        right = {"Authorization": "bearer open sesame", "Host": "library.example"}
        assert server.send("GET", "/v1/models", headers=right)[0] == 200

        client = server.client(api_key="open sesame")
        chunks = client.chat.completions.create(model="latest", messages=[USER], stream=True, max_tokens=3000)
        assert next(iter(chunks)).model == shelf.folder("handbook").name
        server.process.send_signal(signal.SIGINT)
        with pytest.raises(openai.APIError, match="the server was stopped"):
            list(chunks)
        assert server.process.wait(30) == 0


def test_what_keeps_a_server_from_starting(server: Server, shelf: Sandbox, box: Sandbox) -> None:
    port = server.url.rsplit(":", 1)[1].split("/")[0]
    for args, code, told in [
        (["--host", "0.0.0.0"], 2, "token"),
        (["--host", "::"], 2, "token"),
        (["--host", "0.0.0.0", "--token", ""], 2, "token"),
        (["--host", "nowhere.invalid"], 2, "nowhere.invalid"),
        (["--host", ""], 2, "--host"),
        (["--port", "70000"], 2, "--port"),
        (["--port", port], 1, "in use"),
    ]:
        done = shelf.run("serve", *args)
        assert (done.code, done.out) == (code, "")
        assert told in done.err
    assert box.run("serve", "--port", "0").code == 4
    assert shelf.run("serve", "--port", "0", "--doc", "gpt-4o").code == 4


def test_without_its_packages_it_says_how_to_get_them(shelf: Sandbox) -> None:
    for package in ("starlette", "uvicorn"):
        script = (
            f"import sys; sys.modules[{package!r}] = None; sys.argv = ['actqkv', 'serve', '--port', '0']\n"
            "from actqkv_cli.__main__ import main; main()"
        )
        done = subprocess.run([sys.executable, "-c", script], env=shelf.env, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert 'pip install "actqkv[serve]"' in done.stderr
