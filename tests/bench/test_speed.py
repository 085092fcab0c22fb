"""`bench speed` in parts: processes watched from outside, questions, floors, the table and the picture."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from actqkv_cli.bench.machine import Compute
from actqkv_cli.bench.speed import floors, questions
from actqkv_cli.bench.speed_process import Watched, watch
from actqkv_cli.bench.speed_report import draw, table
from actqkv_cli.errors import ActqkvError
from actqkv_cli.model.shape import Shape, causal_pairs, windowed_pairs

SHAPE = Shape(hidden=8, intermediate=16, layers=2, heads=2, kv_heads=1, head_dim=4, vocabulary=99, window=64, tied=True)


def run(script: str, pid: int = 0) -> Watched:
    head = "import json, sys, time, pathlib\ntell = lambda **event: print(json.dumps(event), flush=True)\n"
    return watch([sys.executable, "-c", head + script], os.environ, lambda: 0, pid)


def test_the_first_token_is_timed_when_it_arrives_and_the_last_event_is_the_result() -> None:
    seen = run("time.sleep(.3); tell(type='token'); time.sleep(.3); tell(type='token'); tell(type='done', answer=42)")
    assert seen.first is not None
    assert 0.3 < seen.first < seen.wall - 0.3
    assert seen.result == {"type": "done", "answer": 42}


def test_one_object_on_many_lines_is_a_result_too() -> None:
    seen = run("print(json.dumps({'documents': [{'tokens': 7}]}, indent=2))")
    assert (seen.first, seen.result) == (None, {"documents": [{"tokens": 7}]})


@pytest.mark.parametrize(
    ("script", "message", "code"),
    [
        ("tell(error={'message': 'no document', 'hint': 'try ls', 'exit_code': 4}); sys.exit(4)", "no document", 4),
        ("tell(type='error', message='store damaged', exit_code=6); sys.exit(6)", "store damaged", 6),
        ("sys.stderr.write('Traceback\\nMemoryError: too much\\n'); sys.exit(1)", "MemoryError: too much", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended with -9", 1),
    ],
)
def test_a_process_that_fails_says_why(script: str, message: str, code: int) -> None:
    with pytest.raises(ActqkvError, match=message) as caught:
        run(script)
    assert caught.value.exit_code == code


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells the peak")
def test_the_peak_is_the_processs_own_and_not_its_parents() -> None:
    small = run("time.sleep(.1)").peak_host_bytes
    large = run("data = bytearray(64 << 20); time.sleep(.1); del data; time.sleep(.1)").peak_host_bytes
    assert small is not None
    assert large is not None
    assert small < 60 << 20  # this process has torch in it
    assert (64 << 20) < large < (64 << 20) + 2 * small


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells the peak")
def test_another_process_can_be_looked_at() -> None:
    ours = run("pass", pid=os.getpid()).peak_host_bytes
    assert ours is not None
    assert ours > 100 << 20


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="interrupts in time")
def test_an_interrupted_command_does_not_run_on(tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    mark = tmp_path / "pid"
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(f"import os; pathlib.Path({str(mark)!r}).write_text(str(os.getpid())); time.sleep(60)")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def test_questions_ask_about_different_places_of_the_document() -> None:
    text = " ".join(f"word{number}" for number in range(100))
    asked = questions(text, 5)
    assert len(set(asked)) == 5
    quoted = [question.partition("“")[2].partition("”")[0] for question in asked]
    assert all(words in text and len(words.split()) == 6 for words in quoted)
    assert asked == questions(text, 5)
    assert len(questions("short", 3)) == 3


def test_floors_follow_from_the_rates() -> None:
    compute = {"product": 1e6, "attention": 1.0, "memory": 1.0}
    disk = {"write": 1e3, "cold": 500.0, "warm": 1e9, "dropped": "posix_fadvise"}
    read = {"tokens": 100, "window": 16, "budget": 32}
    rates = Compute(**compute)
    found = floors(SHAPE, compute, disk, tokens=1000, cache=8000, read=read)
    assert found["reread_seconds"] == rates.floor(SHAPE, 1000, causal_pairs(1000))
    assert found["reload_seconds"] == 16
    arithmetic = rates.floor(SHAPE, 100, windowed_pairs(100, 16, 32))
    assert found["read_tokens_per_second"] == pytest.approx(100 / max(arithmetic, 800 / 1e3))
    fast: dict[str, Any] = floors(
        SHAPE, compute, {**disk, "write": 1e9, "cold": None}, tokens=1000, cache=8000, read=read
    )
    assert fast["read_tokens_per_second"] == pytest.approx(100 / arithmetic)
    assert fast["reload_seconds"] is None
    assert fast["stock_full_tokens_per_second"] < fast["read_tokens_per_second"] < fast["stock_tokens_per_second"]


def ask(method: str, process: str, state: str, first: float | None, **more: Any) -> dict[str, Any]:
    stages = {} if method == "stock" else {"import": 0.5, "load": 0.25, "index": 0.125, "retrieve": 0.0625}
    return {
        "method": method, "process": process, "state": state, "round": 0, "first": first, "wall": 9.0,
        "timings": {**stages, "first_token": 1.0, "total": 2.0}, "answer_tokens": 8, "tokens_per_second": 7.0,
        "bytes_read": 3_000_000, "from_disk": 2_000_000, "peak_host_bytes": 900_000_000, "peak_device_bytes": None,
        **more,
    }  # fmt: skip


@pytest.fixture
def record() -> dict[str, Any]:
    return {
        "machine": {
            "system": "Linux", "processor": "Abacus 2", "cores": 2, "threads": 1, "device": "cpu", "dtype": "float32",
            "python": "3.11", "versions": {"actqkv": "1", "torch": "2.9", "transformers": "5.1"}, "commit": "abc+",
        },
        "rates": {
            "compute": {"product": 4e11, "attention": 6e10, "memory": 3e10},
            "disk": {"write": 1e9, "cold": 2e9, "warm": 2e10, "dropped": "posix_fadvise"},
        },
        "model": {"name": "/models/tiny", "shape": {"window": 8192}, "parameters": 135_000_000},
        "document": {"id": "book-1", "name": "book.pdf", "tokens": 20_000, "bytes": 500_000_000},
        "rounds": 3,
        "asks": [
            ask("hybrid", "resident", "warm", 0.25),
            *(ask("full", "fresh", "cold", first) for first in (1.5, 3.5, 2.5)),
            ask("hybrid", "fresh", "cold", None),
            ask("stock", "fresh", "cold", 25.0, bytes_read=0),
        ],
        "decode": {
            "policy": "hybrid", "budget": 2048, "stock_context": 2048, "tokens": 16, "threads": 1,
            "tokens_per_second": [9.0, 11.0, 10.0], "stock_tokens_per_second": [10.0, 10.0, 10.0],
            "ratio": 1.0, "ratio_range": [0.9, 1.1],
        },
        "read": {
            "tokens": 8192, "window": 512, "budget": 2048, "tokens_per_second": [660.0, 700.0, 680.0],
            "stock_tokens_per_second": [1000.0, 1000.0, 1000.0], "stock_full_tokens_per_second": [340.0] * 3,
            "ratio": 0.68, "ratio_range": [0.66, 0.7],
        },
        "floors": {
            "reread_seconds": 42.4, "reload_seconds": 0.25, "read_tokens_per_second": 1400.0,
            "stock_tokens_per_second": 1700.0, "stock_full_tokens_per_second": 1200.0,
        },
        "beyond_window": True,
        "left_out": ["stock: too long"],
    }  # fmt: skip


def row(text: str, *words: str) -> str:
    (found,) = (line for line in text.splitlines() if all(word in line for word in words))
    return found


def test_the_table_has_medians_with_their_spread(record: dict[str, Any]) -> None:
    text = table(record)
    assert "2.50 (1.50 to 3.50)" in row(text, "fresh", "cold", "whole cache")
    assert "25.00" in row(text, "stock, re-reading")
    assert " - " in row(text, "fresh", "retrieval (hybrid)")  # no first token arrived
    assert "10.0 (9.0 to 11.0)" in row(text, "decoding")
    assert "2.00" in row(text, "with full attention")  # 680 to 340
    assert "0.06" in row(text, "resident", "retrieval (hybrid)")
    assert "device MB" not in text  # nothing to show
    assert "not measured: stock: too long" in text
    assert "8,192" in row(text, "own window")
    assert "42.4 s at least" in row(text, "not measured:", "re-reading the document")
    assert max(map(len, text.splitlines())) < 220


def test_the_ways_of_asking_stand_in_one_order(record: dict[str, Any]) -> None:
    lines = [line for line in table(record).splitlines() if line.startswith(("fresh", "resident"))]
    assert [line.split()[2] for line in lines] == ["stock,", "whole", "retrieval", "retrieval"]
    assert lines[-1].startswith("resident")


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_picture_is_drawn_and_the_same_every_time(suffix: str, record: dict[str, Any], tmp_path: Path) -> None:
    draw(record, tmp_path / f"a.{suffix}")
    draw(record, tmp_path / f"b.{suffix}")
    data = (tmp_path / f"a.{suffix}").read_bytes()
    assert data == (tmp_path / f"b.{suffix}").read_bytes()
    assert data.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
