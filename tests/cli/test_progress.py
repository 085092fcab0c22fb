"""What is said of work in progress where stderr is no terminal."""

import time

import pytest

from actqkv_cli import output


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which stands still until it is changed; a line may come every second."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(output, "_PLAIN_EVERY", 1.0)
    return now


def test_a_rate_is_of_all_that_was_done_in_this_run(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress() as report:
        for done in (200, 300, 800):  # what an earlier run did is not in it
            report("reading", done, 1000)
            clock[0] += 2
    assert capsys.readouterr().err.splitlines() == [
        "reading: 300 of 1,000 tokens, 50 tokens/s, 14 s left",
        "reading: 800 of 1,000 tokens, 150 tokens/s, 1 s left",
    ]


def test_the_next_document_has_a_rate_of_its_own(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress() as report:
        for done in (0, 900):
            report("reading", done, 900)
            clock[0] += 2
        clock[0] += 100  # while the model was loaded
        for done in (0, 100):
            report("reading", done, 500)
            clock[0] += 2
    assert capsys.readouterr().err.splitlines() == [
        "reading: 900 of 900 tokens, 450 tokens/s",
        "reading: 0 of 500 tokens",
        "reading: 100 of 500 tokens, 50 tokens/s, 8 s left",
    ]


def test_what_is_not_known_is_left_out(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress(unit="bytes") as report:
        report("fetch", 0, 0)
        clock[0] += 2
        report("fetch", 0, 0)
        clock[0] += 2
        report("fetch", 10, 0)
        report("asking/questions", 0, 4)
        clock[0] += 2
        report("asking/questions", 4, 4)
    assert capsys.readouterr().err.splitlines() == [
        "fetch: 0 bytes",
        "fetch: 10 bytes, 2.50 bytes/s",
        "asking: 4 of 4 questions, 2.00 questions/s",
    ]


def test_nothing_is_said_where_quiet_is_wanted(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress(quiet=True) as report:
        report("reading", 0, 10)
        clock[0] += 20
        report("reading", 10, 10)
    assert capsys.readouterr().err == ""
