"""A layer over pages: whatever computes it, and whatever its pages held before, it is what the definition says."""

import copy
import functools
import gc
import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest
import tiny
import torch
from torch import Tensor

from actqkv_cli.engine import layer as layer_module
from actqkv_cli.engine import prefill as prefill_module
from actqkv_cli.engine import session as session_module
from actqkv_cli.engine.blocks import BlockPool
from actqkv_cli.engine.context import context_of
from actqkv_cli.engine.conversation import Conversation
from actqkv_cli.engine.document import OpenDocument
from actqkv_cli.engine.layer import Layer, Positions
from actqkv_cli.engine.layout import Layout
from actqkv_cli.engine.run import Run
from actqkv_cli.engine.session import Session, session_over
from actqkv_cli.errors import StoreDamaged
from actqkv_cli.model.causal_lm import AttentionCall
from actqkv_cli.model.rotary import Rotary
from actqkv_cli.retrieval.policy import PerToken, Selection
from actqkv_cli.store.reader import DocumentReader
from actqkv_kernels import Workspace, paged_attention

T = TypeVar("T")
BUDGET = tiny.SINK + tiny.LOCAL + 5 * tiny.BLOCK  # 5 retrieved blocks for each layer while reading, 9 for a question
POSITIONS = ["original", "clamped", "compact"]
POLICIES = ["hybrid", "actqkv", "acre", "acre:layer:attended", "quest", "actqkv:every4", "streaming", "full"]
JOINT = ["hybrid", "actqkv", "actqkv:every4", "streaming", "full"]  # policies that work over several documents
FAMILIES = ["llama", "llama3-rope", "yarn", "linear", "mistral-sliding", "qwen2-sliding", "qwen3", "smollm3"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # of the real kernels; on the CPU they are interpreted


@contextmanager
def by(backend: Literal["torch", "reference"]) -> Iterator[None]:
    """Attention is computed by one implementation. What was never written to a page is NaN."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_module, "paged_attention", functools.partial(paged_attention, backend=backend))
        poison_memory(patch, lambda dtype: torch.nan)
        yield


def poison_memory(patch: pytest.MonkeyPatch, value: Callable[[torch.dtype], float]) -> None:
    """What was never written holds a value that is told from others."""

    def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, **kwargs: Any) -> Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(value(tensor.dtype)) if tensor.is_floating_point() else tensor

        return made

    for owner, name in ((torch, "empty"), (Tensor, "new_empty")):
        patch.setattr(owner, name, poisoned(getattr(owner, name)))


@pytest.fixture
def poisoned() -> Iterator[None]:
    with by("torch"):
        yield


def both(what: Callable[[], T]) -> tuple[T, T]:
    """By torch in few passes, and by the definition."""
    with by("torch"):
        found = what()
    with by("reference"):
        return found, what()


def stored(folder: Path, tokens: int = 205, seed: int = 0, family: str = "llama", **how: Any) -> Path:
    how = {"positions": "clamped", "budget": BUDGET, "baselines": True, **how}
    place = folder / f"{family}-{how['positions']}-{tokens}-{seed}"
    if not place.exists():
        ids = tiny.tokens(tokens, seed)
        tiny.ingest(tiny.model(family), ids, place, tiny.reading(**how), tiny.HEADS, 64)
    return place


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where documents stay that several tests ask."""
    return tmp_path_factory.mktemp("shelf")


@dataclass(frozen=True)
class Seen:
    """All that a question and its answer show from outside. logits: `(1 + A, V)`; ranking: `(N,)`; fed:
    `(L, 2, Hkv, n, d)`; choices: after the question and after each token, what every layer attends to."""

    logits: Tensor
    ranking: Tensor
    fed: Tensor
    choices: list[Any]


def choice(run: Run) -> tuple[object, ...]:
    return [ids.tolist() for ids in run.blocks_of_layers], sorted(run.attended), run.attended_tokens


def together(session: Session, runs: Sequence[Run], answers: Sequence[Sequence[int]]) -> list[Seen]:
    """Step through answers, of one length, at once."""
    logits = [[run.logits] for run in runs]
    choices = [[choice(run)] for run in runs]
    for tokens in zip(*answers, strict=True):
        session.step(runs, tokens)
        for run, of_run, chosen in zip(runs, logits, choices, strict=True):
            of_run.append(run.logits)
            chosen.append(choice(run))
    return [
        Seen(
            torch.stack(of_run),
            run.ranking,
            torch.stack([layer.fed for layer in run.layers]),
            chosen,
        )
        for run, of_run, chosen in zip(runs, logits, choices, strict=True)
    ]


def assert_same(found: Seen, expected: Seen, what: object = "") -> None:
    assert found.choices == expected.choices, what
    assert found.logits.shape == expected.logits.shape
    assert (found.logits - expected.logits).abs().max() < 1e-4, what
    assert (found.fed - expected.fed).abs().max() < 1e-4, what
    torch.testing.assert_close(found.ranking, expected.ranking, atol=1e-6, rtol=1e-4, msg=str(what))


def answer(count: int, seed: int = 11) -> list[int]:
    return [int(token) for token in tiny.tokens(count, seed)]


def ask(session: Session, policy: str, length: int = 9, seed: int = 10, tokens: int = 6, max_tokens: int = 6) -> Seen:
    run = session.start(tiny.question(tiny.tokens(length, seed)), policy, max_tokens)
    seen = together(session, [run], [answer(tokens, seed + 1)])[0]
    run.close()
    return seen


@contextmanager
def over(*folders: Path, budget: int | None = None, family: str = "llama") -> Iterator[Session]:
    model = tiny.model(family)
    with ExitStack() as stack:
        documents = [OpenDocument(stack.enter_context(DocumentReader(f)), model.device) for f in folders]
        yield stack.enter_context(session_over(model, context_of(documents, model), budget))


def page_counts(pool: BlockPool) -> list[int]:
    return [len(pool.pages(layer)) for layer in range(tiny.SMALL["num_hidden_layers"])]


# The same answers.


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_model_and_policy_answers_the_same(shelf: Path, family: str, positions: str) -> None:
    folder = stored(shelf, family=family, positions=positions)
    for policy in POLICIES if family == "llama" else ("hybrid", "actqkv", "acre:layer:attended", "full"):

        def asked(policy: str = policy) -> Seen:
            with over(folder, family=family) as session:
                return ask(session, policy)

        assert_same(*both(asked), policy)


@pytest.mark.parametrize("tokens", [1, tiny.BLOCK, tiny.LOCAL, tiny.LOCAL + 1, 40, 41, 47, 48])
def test_documents_that_end_anywhere(tmp_path: Path, tokens: int) -> None:
    """With and without a sink, candidates, and a last block that is full."""
    for positions in POSITIONS:
        folder = stored(tmp_path, tokens, positions=positions)

        def asked(folder: Path = folder) -> Seen:
            with over(folder) as session:
                return ask(session, "actqkv")

        assert_same(*both(asked), positions)


@pytest.mark.parametrize("budget", [tiny.SINK + tiny.LOCAL, BUDGET + 7, 200, 1000])
def test_budgets(shelf: Path, budget: int) -> None:
    for policy in ("hybrid", "actqkv", "acre"):

        def asked(policy: str = policy) -> Seen:
            with over(stored(shelf), budget=budget) as session:
                return ask(session, policy)

        assert_same(*both(asked), policy)


@pytest.mark.parametrize("positions", POSITIONS)
def test_questions_of_any_length_and_answers_beyond_their_room(shelf: Path, positions: str) -> None:
    for length, max_tokens, tokens in ((1, 0, 1), (9, 0, 30), (7, 3, 9), (33, 1, 9), (150, 0, 3)):
        for policy in ("heads", "actqkv"):

            def asked(
                policy: str = policy, length: int = length, max_tokens: int = max_tokens, tokens: int = tokens
            ) -> Seen:
                with over(stored(shelf, positions=positions)) as session:
                    return ask(session, policy, length, max_tokens=max_tokens, tokens=tokens)

            assert_same(*both(asked), (policy, length))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("lengths", [(141, 96), (141, 3), (7, 150), (65, 33, 90)])
def test_several_documents(shelf: Path, lengths: tuple[int, ...], positions: str) -> None:
    """With gaps behind them, in the far pages as in the near."""
    folders = [stored(shelf, length, seed, positions=positions) for seed, length in enumerate(lengths)]
    for policy in JOINT:

        def asked(policy: str = policy) -> Seen:
            with over(*folders) as session:
                return ask(session, policy)

        assert_same(*both(asked), policy)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("lengths", [(3,), (96,), (141,), (141, 99)])
def test_a_conversation(shelf: Path, lengths: tuple[int, ...], positions: str) -> None:
    """What was said is kept from the pages it was fed to, and falls under retrieval in the end."""
    folders = [stored(shelf, length, seed, positions=positions) for seed, length in enumerate(lengths)]

    def talked() -> list[Seen]:
        turns = []
        with ExitStack() as stack:
            opened = [OpenDocument(stack.enter_context(DocumentReader(f)), torch.device("cpu")) for f in folders]
            conversation = Conversation(opened, tiny.model())
            for turn, policy in enumerate(("hybrid", "actqkv", "full", "actqkv:every4", "actqkv")):
                with session_over(tiny.model(), conversation.context, BUDGET) as session:
                    run = session.start(tiny.question(tiny.tokens(9 + turn, turn)), policy, 10)
                    turns += together(session, [run], [answer(10 + turn, 50 + turn)])
                    conversation.add(run)
        return turns

    for turn, (found, expected) in enumerate(zip(*both(talked), strict=True)):
        assert_same(found, expected, turn)


def test_questions_that_go_through_the_model_together(shelf: Path) -> None:
    """Of different lengths, under all policies, one of them with budgets of its own."""
    settings = [(policy, None) for policy in POLICIES] + [("actqkv", 40), ("heads", 120)]
    asked = [
        (tiny.question(tiny.tokens(1 + 5 * number % 31, number)), policy, budget)
        for number, (policy, budget) in enumerate(settings)
    ]
    answers = [answer(6, number) for number in range(len(settings))]

    def at_once() -> list[Seen]:
        with over(stored(shelf)) as session:
            return together(session, session.start_all(asked, 6), answers)

    def alone() -> list[Seen]:
        with over(stored(shelf)) as session:
            return [
                together(session, session.start_all([one], 6), [tokens])[0]
                for one, tokens in zip(asked, answers, strict=True)
            ]

    found, expected = both(at_once)
    with by("torch"):
        one_by_one = alone()
    for what, ours, apart, right in zip(settings, found, one_by_one, expected, strict=True):
        assert_same(ours, right, what)
        assert_same(apart, right, what)


def test_steps_that_are_taken_alone_and_together(shelf: Path) -> None:
    """In turns, so that what a run does alone goes on where it was left, and the other way round."""
    policies = ["actqkv", "hybrid", "actqkv:every4", "quest", "acre"]
    answers = torch.tensor([answer(12, number) for number in range(len(policies))])

    def stepped() -> list[Tensor]:
        with over(stored(shelf)) as session:
            question = tiny.question(tiny.tokens(9, 10))
            runs = session.start_all([(question, policy, None) for policy in policies], 5)
            logits = []
            for number, tokens in enumerate(answers.T.tolist()):
                if number % 4 == 3:
                    session.step(runs, tokens)
                else:
                    for run, token in zip(runs, tokens, strict=True):
                        run.step(token)
                logits.append(torch.stack([run.logits for run in runs]))
            return logits

    for number, (found, expected) in enumerate(zip(*both(stepped), strict=True)):
        assert (found - expected).abs().max() < 1e-4, number


class Alternating(PerToken):
    """Wants the last blocks for a question, the first for the next token, and so on."""

    def scores(self, layer: int, queries: Tensor) -> Tensor:
        order = torch.arange(float(len(self.task.candidates)))
        return order if self._token % 2 else -order


def test_a_choice_that_comes_back(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a step that was taken alone, and so was recorded, what was attended before it is attended anew."""
    monkeypatch.setattr(session_module, "make_policy", lambda name, task: Alternating(task))

    def stepped() -> list[Seen]:
        with over(stored(shelf)) as session:
            asked = [(tiny.question(tiny.tokens(9, seed)), "alternating", None) for seed in (10, 20)]
            runs = session.start_all(asked, 5)
            for run in runs:
                run.step(3)
            return together(session, runs, [answer(3), answer(3)])

    for found, expected in zip(*both(stepped), strict=True):
        assert_same(found, expected)


def test_an_answer_in_one_pass(shelf: Path) -> None:
    """What is followed goes through the model at once where the selection stays, token by token where it does not."""
    question = tiny.question(tiny.tokens(9, 10))

    def followed() -> list[Tensor]:
        with over(stored(shelf)) as session:
            runs = [session.start(question, policy, max_tokens) for policy in POLICIES for max_tokens in (0, 20)]
            return session.teacher_force(runs, tiny.tokens(20, 11))

    for found, expected in zip(*both(followed), strict=True):
        assert (found - expected).abs().max() < 1e-4


def test_half_precision_stays_near(tmp_path: Path) -> None:
    model = tiny.model().bfloat16()
    try:
        ids = torch.cat([tiny.tokens(101), tiny.tokens(9, 10)])
        stock = tiny.stock_logits(model, ids, 1)[0]
        with by("torch"):
            how = tiny.reading(representative="anchor", baselines=True, budget=1000)
            tiny.ingest(model, ids[:101], tmp_path / "document", how, tiny.HEADS)
            with tiny.opened(model, tmp_path / "document") as session:
                for name in ("hybrid", "actqkv", "acre:fixed", "quest", "full"):
                    run = session.start(tiny.question(ids[101:]), name, 0)
                    assert run.logits.isfinite().all()
                    assert torch.nn.functional.cosine_similarity(run.logits, stock, dim=0) > 0.99, name
    finally:
        tiny.model.cache_clear()


# One layer, called as no model of ours calls it.


class Layers:
    """Two of one document of 200 tokens, whose local window begins and ends within blocks: one is computed by the
    definition."""

    POSITION = 157

    def __init__(self, family: str, positions: Positions, gaps: Tensor | None = None, device: str = "cpu") -> None:
        self.draw = torch.Generator().manual_seed(3)
        self.device = device
        self.tokens = self.normal(2, 2, 200, 16)
        self.selected: Tensor | Selection = torch.empty(0, dtype=torch.int64)
        layout = Layout(tiny.BLOCK, tiny.SINK, tiny.LOCAL, 1 << 20)
        rotary = Rotary(copy.deepcopy(tiny.model(family)).to(device))
        self.layers = []
        for _ in range(2):
            pool = BlockPool(self.blocks, 1, 25, torch.device(device))
            layer = Layer(0, pool, lambda *_: self.selected, rotary, layout, positions, Workspace(), gaps)
            layer.return_mass = True
            layer.begin(self.POSITION, 2)  # less room than is needed
            self.layers.append(layer)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.draw).to(self.device)

    def blocks(self, layer: int, ids: Tensor) -> Tensor:
        return self.tokens.unflatten(2, (-1, tiny.BLOCK))[:, :, ids.to(self.device)].permute(2, 0, 1, 3, 4)

    def attend(self, window: int, blocks: list[int], loose: list[int], call: AttentionCall, given: bool = True) -> None:
        """With blocks and single tokens beside sink and local window; and compare all that can be told of it. given:
        whether tokens come with their states, or are read from their blocks."""
        tokens = torch.tensor(loose).long()
        states = self.tokens[:, :, tokens.to(self.device)] if given else None
        ids = torch.tensor(blocks).long()
        self.selected = Selection(ids, tokens, states) if loose else ids
        ours, other = self.layers
        given_all = self.normal(4, window, 16), *self.normal(2, 2, window, 16), call
        found = ours.attend(*given_all)
        with by("reference"):
            expected = other.attend(*given_all)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
        mass = [layer.document_mass(self.POSITION) for layer in self.layers]
        torch.testing.assert_close(*mass, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.fed, other.fed, atol=0, rtol=0)
        assert ours.far_tokens == other.far_tokens


GAPS = torch.tensor([22, 23, 140, 141, 142, 143])  # at the ends of blocks, far and near


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("sliding", [None, 20, 34, 45])
@pytest.mark.parametrize("family", ["llama", "yarn"])
def test_a_layer_alone(family: str, sliding: int | None, positions: Positions) -> None:
    """Blocks stay while a token goes, and the other way round; and nothing may be far."""
    for rotates in (True, False):
        for gaps in (None, GAPS):
            layers = Layers(family, positions, gaps)
            call = AttentionCall(0.25, rotates, sliding)
            layers.attend(9, [2, 3, 7], [8, 41, 127], call)
            layers.attend(1, [2, 3, 7], [8, 41], call)
            layers.attend(1, [2, 3, 7], [8, 40], call)
            layers.attend(2, [3, 7], [8, 40], call, given=False)
            layers.attend(1, [3, 7], [32, 41, 48, 127], call, given=False)
            layers.attend(1, [], [], call)
            layers.attend(13, [14], [], call)


# A pool whose pages are taken, given back, and taken again.


def test_asked_again_in_pages_that_are_warm(shelf: Path, poisoned: None) -> None:
    """Nothing of a question stays behind in the pages, and the pool is as large after many as after a few."""
    cold = {}
    for policy in POLICIES:
        for seed in (10, 20):
            with over(stored(shelf)) as session:
                cold[policy, seed] = ask(session, policy, seed=seed)
    with over(stored(shelf)) as session:
        counts = []
        for _ in range(3):
            for (policy, seed), expected in cold.items():
                found = ask(session, policy, seed=seed)
                assert torch.equal(found.logits, expected.logits), policy
                assert torch.equal(found.ranking, expected.ranking), policy
                assert found.choices == expected.choices
            counts.append(page_counts(session.context.pool))
    assert counts == counts[:1] * 3
    assert not torch.equal(cold["actqkv", 10].logits, cold["actqkv", 20].logits)


def test_what_was_gathered_for_an_answer_goes_when_it_is_closed(shelf: Path) -> None:
    """Not when a collector comes by: after a few questions of `full` that was all memory."""
    with over(stored(shelf)) as session:
        run = session.start(tiny.question(tiny.tokens(9)), "full", 4)
        lists = [weakref.ref(pages) for layer in run.layers for pages in (layer._far_list, layer._near)]
        assert all(pages() for pages in lists)
        gc.disable()
        try:
            run.close()
            assert not any(pages() for pages in lists)
        finally:
            gc.enable()


def test_what_has_ended_gives_its_pages_back(shelf: Path, poisoned: None) -> None:
    """When it is closed, and at the end of its session, whatever else is still referred to."""
    with over(stored(shelf)) as session:
        pool = session.context.pool
        first, second = (session.start(tiny.question(tiny.tokens(9, seed)), "actqkv:every4", 4) for seed in (10, 20))
        before = pool._pins.sum()
        first.step(5)
        first.close()
        first.close()
        assert 0 < pool._pins.sum() <= before / 2
        second.step(5)
    assert pool._pins.sum() == 0
    assert second.attended  # what it attended to can still be told


def test_a_question_that_cannot_begin_says_why(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its layers are closed all the same, whichever of them failed."""
    real = BlockPool.lease

    def failing(self: BlockPool, layer: int, count: int) -> Any:
        if layer == 2:
            raise MemoryError
        return real(self, layer, count)

    with over(stored(shelf)) as session:
        pool = session.context.pool
        monkeypatch.setattr(BlockPool, "lease", failing)
        with pytest.raises(MemoryError):
            session.start(tiny.question(tiny.tokens(9, 10)), "actqkv", 4)
        monkeypatch.undo()
        ask(session, "actqkv")
    assert pool._pins.sum() == 0


def test_living_runs_keep_their_pages(shelf: Path) -> None:
    """Of a document of many blocks, by a pool for few: runs step in turn, end and begin, and bring blocks each time."""
    folder = stored(shelf, 605)
    order = torch.randint(0, 6, (60,), generator=torch.Generator().manual_seed(5)).tolist()

    def asked() -> dict[int, list[Tensor]]:
        logits: dict[int, list[Tensor]] = {}
        living: dict[int, Run] = {}
        with over(folder) as session:
            for number, which in enumerate(order):
                if which not in living or number % 7 == 6:  # one ends, and another takes its place
                    if which in living:
                        living[which].close()
                    policy = ("actqkv", "quest:every4", "actqkv:every4", "acre", "hybrid", "full")[which]
                    living[which] = session.start(tiny.question(tiny.tokens(9, number)), policy, 3)
                else:
                    living[which].step(answer(1, number)[0])
                logits.setdefault(which, []).append(living[which].logits)
        return logits

    found, expected = both(asked)
    for which, ours in found.items():
        assert (torch.stack(ours) - torch.stack(expected[which])).abs().max() < 1e-4
    assert min(map(len, found.values())) > 5


def test_what_was_chosen_stays_though_all_other_pages_are_taken(shelf: Path) -> None:
    """By a question so long that no page is free after it."""

    def stepped() -> list[Tensor]:
        with over(stored(shelf)) as session:
            run = session.start(tiny.question(tiny.tokens(9, 10)), "actqkv:every4", 9)
            logits = []
            for token in answer(9):
                session.start(tiny.question(tiny.tokens(300, token)), "streaming", 0)
                logits.append(run.step(token))
            return logits

    for number, (found, expected) in enumerate(zip(*both(stepped), strict=True)):
        assert (found - expected).abs().max() < 1e-4, number


def test_damage_fails_only_what_wants_the_damaged_block(shelf: Path, tmp_path: Path) -> None:
    """Not what a layer would have chosen before the layers below it had all their blocks."""
    folder = tmp_path / "document"
    shutil.copytree(stored(shelf, 405), folder)
    segment = sorted(folder.glob("kv-*"))[2]
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)

    def asked() -> list[Tensor | None]:
        found: list[Tensor | None] = []
        with over(folder) as session:
            for policy in ("actqkv", "quest", "actqkv:every4", "streaming", "full", "actqkv"):
                for seed in range(3):
                    try:
                        found.append(ask(session, policy, seed=seed).logits)
                    except StoreDamaged:
                        found.append(None)
        return found

    ours, right = both(asked)
    assert [logits is None for logits in ours] == [logits is None for logits in right]
    assert 3 <= ours.count(None) < 15
    for found, expected in zip(ours, right, strict=True):
        if found is not None and expected is not None:
            assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize("tokens", [205, 1205])
def test_pages_for_asking_do_not_grow_with_the_document(shelf: Path, poisoned: None, tokens: int) -> None:
    """Room for a few choices, each at most twice a layer's share."""
    with over(stored(shelf, tokens)) as session:
        for policy in ("hybrid", "actqkv", "acre", "quest", "actqkv"):
            ask(session, policy, tokens=12)
        assert max(page_counts(session.context.pool)) <= 6 * (2 * 5)


# Reading a document.


@pytest.mark.parametrize(
    ("family", "how"),
    [
        ("llama", {}),
        ("llama", {"window": 8, "representative": "anchor"}),
        ("llama", {"window": 64, "prefill": "full", "positions": "original", "representative": "anchor"}),
        ("yarn", {"positions": "compact", "score": "cosine", "local": 16}),
        ("yarn", {"budget": tiny.SINK + tiny.LOCAL, "representative": "anchor"}),
        ("mistral-sliding", {"positions": "original", "window": 16}),
        ("qwen2-sliding", {"positions": "clamped", "representative": "anchor"}),
        ("qwen3", {"positions": "compact", "prefill": "full"}),
        ("smollm3", {"positions": "clamped", "window": 64, "local": 8, "sink": 0}),
    ],
)
def test_a_document_is_read_the_same(tmp_path: Path, family: str, how: dict[str, Any]) -> None:
    """Every block, representative, and what the baselines keep."""

    def read() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        folder = tmp_path / str(len([*tmp_path.iterdir()]))
        return tiny.stored(stored(folder, 301, family=family, **how))

    (blocks, representatives, methods), (blocks_too, representatives_too, methods_too) = both(read)
    torch.testing.assert_close(blocks, blocks_too, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(representatives, representatives_too, atol=1e-4, rtol=1e-4)
    assert methods.keys() == methods_too.keys()
    for name, expected in methods_too.items():
        torch.testing.assert_close(methods[name], expected, atol=1e-4, rtol=1e-3)


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[BlockPool]:
    """Those that documents are read with."""
    found = []

    def noted(*args: Any) -> BlockPool:
        found.append(BlockPool(*args))
        return found[-1]

    monkeypatch.setattr(prefill_module, "BlockPool", noted)
    return found


@pytest.mark.parametrize("tokens", [301, 1205])
def test_pages_for_reading_do_not_grow_with_the_document(
    tmp_path: Path, poisoned: None, pools: list[BlockPool], tokens: int
) -> None:
    """Twice what a window attends to, itself included, is the most that is held: the choice before stays until the
    next is there."""
    stored(tmp_path, tokens, window=16)
    assert max(page_counts(pools[0])) <= 2 * (BUDGET + 16) // tiny.BLOCK


def test_a_budget_beyond_the_document_takes_no_more_pages(
    tmp_path: Path, poisoned: None, pools: list[BlockPool]
) -> None:
    folder = stored(tmp_path, budget=10_000)
    with over(folder, budget=20_000) as session:
        ask(session, "actqkv")
        ask(session, "full")
        blocks = -(-205 // tiny.BLOCK)
        assert max(page_counts(session.context.pool)) <= 5 * blocks
    assert max(page_counts(pools[0])) <= 2 * blocks


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(
    "how",
    [
        {"representative": "anchor"},
        {"positions": "compact", "representative": "anchor"},
        {"prefill": "full", "positions": "original"},
    ],
)
def test_an_interruption_leaves_no_trace(tmp_path: Path, poisoned: None, how: dict[str, Any]) -> None:
    """The same files, byte for byte, however much of them was there already."""

    def read(home: str, stop_at: int = -1) -> Path:
        def progress(position: int) -> None:
            if position == stop_at:
                raise Interrupted

        settings = tiny.reading(**{"positions": "clamped", "budget": BUDGET, **how})
        folder = tmp_path / home / "document"
        tiny.ingest(tiny.model(), tiny.tokens(205), folder, settings, tiny.HEADS, 64, progress)
        return folder

    undisturbed = read("undisturbed")
    for stop_at in (32, 96, 160, 205):
        with pytest.raises(Interrupted):
            read(f"stopped-at-{stop_at}", stop_at)
        folder = read(f"stopped-at-{stop_at}")
        for path in undisturbed.iterdir():
            assert (folder / path.name).read_bytes() == path.read_bytes(), (stop_at, path.name)


# The kernels themselves: interpreted, where there is no GPU.


def two_layers() -> Any:
    """The smallest model in which one layer's choice follows from another's output."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny.CONFIGS, "two layers", {**tiny.CONFIGS["llama"], "num_hidden_layers": 2})
        return tiny.model("two layers").to(DEVICE)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """They run, and NumPy, which interprets them, warns of an overflow where they read what was never written."""
    monkeypatch.setenv("ACTQKV_KERNELS", "triton")
    poison_memory(monkeypatch, lambda dtype: torch.finfo(dtype).max)


@pytest.fixture(scope="module")
def read_by_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By torch, in three windows, the last of which chooses 2 of 5 blocks."""
    folder = tmp_path_factory.mktemp("torch") / "document"
    how = tiny.reading(positions="clamped", budget=tiny.SINK + 16 + 2 * tiny.BLOCK, local=16, representative="anchor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACTQKV_KERNELS", "torch")
        tiny.ingest(two_layers(), tiny.tokens(67), folder, how, tiny.HEADS, 32)
    return folder


@pytest.mark.parametrize("family", ["llama", "yarn"])  # yarn's keys are scaled where they are not turned
@pytest.mark.parametrize("positions", POSITIONS)
def test_kernels_of_a_layer_alone(family: str, positions: Positions, kernels: None) -> None:
    layers = Layers(family, positions, GAPS, DEVICE)
    layers.attend(5, [2, 3], [41, 127], AttentionCall(0.25, True, None))
    layers.attend(1, [3, 7], [], AttentionCall(0.25, True, 34))
    layers.attend(1, [3], [], AttentionCall(0.25, False, None))


def test_kernels_answer_the_same(read_by_torch: Path, kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two questions of different lengths at once: one policy scouts, one chooses at every token."""
    asked = [(tiny.question(tiny.tokens(3, 1)), "hybrid", None), (tiny.question(tiny.tokens(2, 2)), "actqkv", None)]
    found = []
    for backend in ("triton", "torch"):
        monkeypatch.setenv("ACTQKV_KERNELS", backend)
        with tiny.opened(two_layers(), read_by_torch) as session:
            found.append(together(session, session.start_all(asked, 2), [answer(2, 3), answer(2, 4)]))
    for ours, expected in zip(*found, strict=True):
        assert_same(ours, expected)


def test_kernels_read_the_same(read_by_torch: Path, tmp_path: Path, kernels: None) -> None:
    with DocumentReader(read_by_torch) as reader:
        how = reader.manifest.reading
    tiny.ingest(two_layers(), tiny.tokens(67), tmp_path / "document", how, tiny.HEADS, 32)
    for ours, expected in zip(tiny.stored(tmp_path / "document")[:2], tiny.stored(read_by_torch)[:2], strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
