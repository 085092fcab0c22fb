"""What is understood of a request's body."""

import json
from pathlib import Path
from typing import Any

import pytest

from actqkv_cli.config import Settings
from actqkv_cli.errors import UsageError
from actqkv_cli.serve.request import ChatRequest, conversation, parse


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def request(**fields: Any) -> ChatRequest:
    return parse(json.dumps({"model": "latest", "messages": [said("user", "Who?")], **fields}).encode())


def test_messages_become_an_instruction_turns_and_a_question() -> None:
    messages = [
        said("system", "Be brief. "),
        said("user", " Who?\n"),
        said("assistant", "Edda."),
        said("developer", [{"type": "text", "text": "In French."}]),
        said("user", [{"type": "text", "text": "And"}, {"type": "text", "text": "when?"}]),
    ]
    assert conversation(request(messages=messages).messages) == (
        "Be brief.\nIn French.",
        [("Who?", "Edda.")],
        "And\nwhen?",
    )
    assert conversation(request().messages) == ("", [], "Who?")


def test_a_message_that_a_client_was_given_can_be_sent_back() -> None:
    given = {**said("assistant", "Edda."), "refusal": None, "tool_calls": None, "audio": None, "function_call": None}
    turns = conversation(request(messages=[said("user", "Who?"), given, said("user", "When?")]).messages)[1]
    assert turns == [("Who?", "Edda.")]


def test_the_servers_settings_hold_but_for_what_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    base = Settings(home=tmp_path, policy="heads", budget=1024, max_tokens=7, temperature=0.5, seed=3)
    assert request().settings(base) == base
    assert request(temperature=None, seed=None).settings(base) == base
    # What has changed around the server since it was started does not count.
    monkeypatch.setenv("ACTQKV_BUDGET", "4096")
    found = request(max_tokens=9, temperature=0, top_p=0.5, seed=0, policy="acre").settings(base)
    expected = {"max_tokens": 9, "temperature": 0.0, "top_p": 0.5, "seed": 0, "policy": "acre"}
    assert found == base.model_copy(update=expected)
    assert request(max_tokens=9, max_completion_tokens=8).settings(base).max_tokens == 8


@pytest.mark.parametrize("fields", [{"budget": 5}, {"max_tokens": 0}, {"top_p": 1.5}, {"temperature": -0.1}])
def test_values_have_the_bounds_of_the_settings(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(fields))):
        request(**fields).settings(Settings())
