"""A recorded step is a step: whatever was missing, and whatever happened between."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from actqkv_cli.engine import layer as layer_module
from actqkv_cli.engine import recorded
from actqkv_cli.engine import run as run_module
from actqkv_cli.engine.blocks import BlockPool
from actqkv_cli.engine.recorded import RecordedStep
from actqkv_cli.engine.run import Run
from actqkv_cli.engine.session import Session
from actqkv_kernels import paged_attention

BUDGET = tiny.SINK + tiny.LOCAL + 3 * tiny.BLOCK
ANSWER = tiny.tokens(12, 5).tolist()
POLICIES = ["hybrid", "actqkv", "quest", "actqkv:every4", "acre"]


@pytest.fixture(autouse=True)
def _as_on_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are recorded as where kernels run, and the definition computes what they are asked for."""
    monkeypatch.setattr(layer_module, "kernels_run", lambda rotary: True)
    attend = functools.partial(paged_attention, backend="reference")
    monkeypatch.setattr(layer_module, "paged_attention", attend)


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library") / "document"
    how = tiny.reading(positions="original", budget=BUDGET, baselines=True)
    tiny.ingest(tiny.model(), tiny.tokens(413), folder, how, tiny.HEADS, 64)
    return folder


@contextmanager
def opened(folder: Path) -> Iterator[Session]:
    with tiny.opened(tiny.model(), folder) as made:
        yield made


def start(of: Session, policy: str, max_tokens: int = len(ANSWER)) -> Run:
    return of.start(tiny.question(tiny.tokens(9, 3)), policy, max_tokens)


def by_hand(folder: Path, policy: str, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Logits of every step of the answer, none of them recorded."""
    with opened(folder) as asked, monkeypatch.context() as patch:
        patch.setattr(run_module, "recordable", lambda layers, policy: False)
        run = start(asked, policy)
        return torch.stack([run.step(token) for token in ANSWER])


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each step was done by playing."""
    found: list[bool] = []
    real = RecordedStep.step

    def noting(self: RecordedStep, token: int) -> Tensor | None:
        logits = real(self, token)
        found.append(logits is not None)
        return logits

    monkeypatch.setattr(RecordedStep, "step", noting)
    return found


@pytest.mark.parametrize("policy", POLICIES)
def test_steps_are_played_and_right(
    policy: str, document: Path, played: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = by_hand(document, policy, monkeypatch)
    with opened(document) as asked:
        run = start(asked, policy)
        found = torch.stack([run.step(token) for token in ANSWER])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert played == [True] * len(ANSWER)


@pytest.mark.parametrize("policy", ["actqkv", "quest"])
def test_what_is_missing_is_fetched_and_the_step_played_again(
    policy: str, document: Path, played: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = by_hand(document, policy, monkeypatch)
    plays = 0
    real = recorded._recorded

    def counting(compute: object, device: torch.device) -> object:
        play = real(compute, device)  # type: ignore[arg-type]

        def counted() -> Tensor:
            nonlocal plays
            plays += 1
            return play()

        return counted

    monkeypatch.setattr(recorded, "_recorded", counting)
    with opened(document) as asked:
        run = start(asked, policy)
        found = []
        for token in ANSWER:
            pool = asked.context.pool
            for layer in range(4):  # all that is not held leaves
                free = (pool._pins[layer] == 0).nonzero()[0]
                pool._forget(layer, free)
                pool.pages(layer)[torch.from_numpy(free)] = torch.nan
            found.append(run.step(token))
    torch.testing.assert_close(torch.stack(found), expected, atol=1e-4, rtol=1e-4)
    assert played == [True] * len(ANSWER)
    assert plays > len(ANSWER)


@pytest.mark.parametrize("policy", POLICIES)
def test_steps_by_hand_between_are_noticed(
    policy: str, document: Path, played: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps together with another run are not recorded, nor is one for which there is no room yet."""
    expected = by_hand(document, policy, monkeypatch)
    with opened(document) as asked:
        run, other = start(asked, policy, max_tokens=0), start(asked, "streaming")
        found = []
        for number, token in enumerate(ANSWER):
            if number in (2, 3, 7):
                asked.step([run, other], [token, 1])
            else:
                run.step(token)
            found.append(run.logits)
    torch.testing.assert_close(torch.stack(found), expected, atol=1e-4, rtol=1e-4)
    assert 0 < len(played) < len(ANSWER) - 2


def test_a_pool_that_grows_is_read_where_it_then_is(
    document: Path, played: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = by_hand(document, "actqkv", monkeypatch)
    with opened(document) as asked:
        run = start(asked, "actqkv")
        found = []
        for number, token in enumerate(ANSWER):
            if number == 4:
                pool: BlockPool = asked.context.pool
                before = pool.pages(0)
                pool.reserve(len(before) + 50)
                before.fill_(torch.nan)
            found.append(run.step(token))
    torch.testing.assert_close(torch.stack(found), expected, atol=1e-4, rtol=1e-4)
    assert played == [True] * len(ANSWER)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_steps_held_is_let_go(policy: str, document: Path) -> None:
    with opened(document) as asked:
        pool = asked.context.pool
        run = start(asked, policy)
        for token in ANSWER:
            run.step(token)
        run.close()
        assert pool._pins.sum() == 0
