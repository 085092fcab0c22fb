"""Questions to a stored document: independent of one another, within the budget, at any size."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from actqkv_cli.engine import layer as layer_module
from actqkv_cli.engine import session as session_module
from actqkv_cli.engine.session import open_session
from actqkv_cli.errors import StoreDamaged, UsageError
from actqkv_cli.retrieval.names import policy_names
from actqkv_cli.retrieval.policy import QueryDriven
from actqkv_cli.store import jsonfile
from actqkv_cli.store.manifest import METHODS
from actqkv_cli.store.reader import DocumentReader
from actqkv_cli.store.tensors import names_in, write_tensors
from actqkv_cli.store.verify import verify_document
from actqkv_kernels import PageList, paged_attention

BUDGET = tiny.SINK + tiny.LOCAL + 5 * tiny.BLOCK  # 5 retrieved blocks for each layer while reading, 9 for a question


POLICIES = [*policy_names(), "acre:layer:attended"]
CHOOSING = [name for name in POLICIES if name not in ("full", "streaming", "h2o", "snapkv")]  # by the question


def stored(folder: Path, tokens: int = 301, seed: int = 0, **how: Any) -> Path:
    how = {"positions": "clamped", "budget": BUDGET, "baselines": True, **how}
    tiny.ingest(tiny.model(), tiny.tokens(tokens, seed), folder / "document", tiny.reading(**how), tiny.HEADS, 64)
    return folder / "document"


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored(tmp_path_factory.mktemp("other"), seed=7)


@pytest.fixture(params=POLICIES)
def policy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def asked(folder: Path, policy: str, seed: int, length: int = 9, max_tokens: int | None = None) -> Tensor:
    """Logits of one question alone, in a session of its own."""
    with tiny.opened(tiny.model(), folder) as session:
        return tiny.answer_logits(session, tiny.tokens(length, seed), policy, tiny.tokens(6, seed + 1), max_tokens)


def test_questions_do_not_see_one_another(document: Path, policy: str) -> None:
    alone = [asked(document, policy, seed) for seed in (10, 20)]
    with tiny.opened(tiny.model(), document) as session:
        for seed in (10, 20, 20, 10):
            again = tiny.answer_logits(session, tiny.tokens(9, seed), policy, tiny.tokens(6, seed + 1))
            assert torch.equal(again, alone[seed // 10 - 1])
    assert not torch.equal(*alone)


def test_runs_may_be_interleaved(document: Path) -> None:
    """Two unfinished answers of one session: neither sees the other's tokens."""
    alone = asked(document, "actqkv", 10)
    with tiny.opened(tiny.model(), document) as session:
        first = session.start(tiny.question(tiny.tokens(9, 10)), "actqkv", 6)
        other = session.start(tiny.question(tiny.tokens(9, 20)), "actqkv", 6)
        for expected, token in zip(alone[1:], tiny.tokens(6, 11).tolist(), strict=True):
            other.step(token)
            assert torch.equal(first.step(token), expected)


def test_documents_do_not_see_one_another(document: Path, other: Path, policy: str) -> None:
    alone = asked(document, policy, 10)
    assert not torch.equal(asked(other, policy, 10), alone)
    assert torch.equal(asked(document, policy, 10), alone)


def test_a_document_does_not_depend_on_what_was_read_before(document: Path, tmp_path: Path) -> None:
    stored(tmp_path / "between", seed=9)
    again = stored(tmp_path / "again")
    for path in document.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("tokens", [1, 5, tiny.BLOCK, tiny.BLOCK + 1, tiny.LOCAL, tiny.LOCAL + 1, 40, 41, 48, 63])
@pytest.mark.parametrize("positions", ["original", "clamped", "compact"])
def test_short_documents_are_read_whole(tmp_path: Path, tokens: int, positions: str) -> None:
    """Up to sink and local window all is attended, whatever the policy: so it is what stock says."""
    folder = stored(tmp_path, tokens, positions=positions)
    ids = torch.cat([tiny.tokens(tokens), tiny.tokens(9, 10), tiny.tokens(6, 11)])
    stock = tiny.stock_logits(tiny.model(), ids, 7)
    with tiny.opened(tiny.model(), folder) as session:
        for policy in POLICIES:
            ours = tiny.answer_logits(session, tiny.tokens(9, 10), policy, tiny.tokens(6, 11))
            assert ours.isfinite().all()
            if tokens <= tiny.LOCAL or (positions != "clamped" and tokens <= tiny.SINK + tiny.LOCAL):
                assert (ours - stock).abs().max() < 1e-4, policy


@pytest.mark.parametrize("tokens", [296, 301])
def test_compact_equals_original_when_all_is_attended(tmp_path: Path, tokens: int) -> None:
    first, second = (
        asked(stored(tmp_path / how, tokens, positions=how, budget=1 << 20), "full", 10)
        for how in ("original", "compact")
    )
    torch.testing.assert_close(first, second, atol=1e-4, rtol=0)


def test_clamped_is_another_view_of_the_same(tmp_path: Path) -> None:
    first, second = (
        asked(stored(tmp_path / how, positions=how, budget=1 << 20), "full", 10) for how in ("original", "clamped")
    )
    assert second.isfinite().all()
    assert (first - second).abs().max() > 1e-2


@pytest.mark.parametrize("length", [1, 33, 150])
def test_a_question_of_any_length(tmp_path: Path, length: int) -> None:
    folder = stored(tmp_path, positions="original", budget=1 << 20)
    ids = torch.cat([tiny.tokens(301), tiny.tokens(length, 10), tiny.tokens(6, 11)])
    ours = asked(folder, "full", 10, length)
    torch.testing.assert_close(ours, tiny.stock_logits(tiny.model(), ids, 7), atol=1e-4, rtol=0)


def test_an_answer_may_be_longer_than_its_room(document: Path, policy: str) -> None:
    torch.testing.assert_close(
        asked(document, policy, 10, max_tokens=0), asked(document, policy, 10), atol=1e-5, rtol=0
    )


def test_half_precision_stays_near(tmp_path: Path) -> None:
    """The same weights in bfloat16, all attended: near to stock in bfloat16, not to the bit."""
    model = tiny.model().bfloat16()
    try:
        ids = torch.cat([tiny.tokens(101), tiny.tokens(9, 10)])
        how = tiny.reading(representative="anchor", baselines=True)
        tiny.ingest(model, ids[:101], tmp_path / "document", how, tiny.HEADS)
        stock = tiny.stock_logits(model, ids, 1)[0]
        with tiny.opened(model, tmp_path / "document") as session:
            for name in (*policy_names(), "acre:fixed"):
                run = session.start(tiny.question(ids[101:]), name, 0)
                near = float(torch.nn.functional.cosine_similarity(run.logits, stock, dim=0))
                assert near > (0.9 if name == "acre" else 0.99), name  # it alone leaves some out
    finally:
        tiny.model.cache_clear()


class Attended:
    """Notes what `paged_attention` is given: how many keys there are to see beside the window, and the far values."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.beside: list[int] = []
        self.far_values: list[Tensor] = []

        def noting(
            query: Tensor, keys: Tensor, values: Tensor, far: PageList, near: PageList, where: Tensor, **options: Any
        ) -> Any:
            there = []
            for side, now in ((far, where[0]), (near, where[1])):
                listed = torch.arange(len(side.slots))[:, None] < side.count
                there.append(listed & (side.positions >= 0) & (side.positions <= now.max()))
            used = torch.cat([side.slots[seen.any(dim=1)] for side, seen in zip((far, near), there, strict=True)])
            assert len(used.unique()) == len(used)  # no page twice
            self.beside.append(sum(int(seen.sum()) for seen in there) - query.shape[1])
            self.far_values.append(values[far.slots].transpose(1, 2)[there[0]].transpose(0, 1).clone())
            return paged_attention(query, keys, values, far, near, where, **options)

        monkeypatch.setattr(layer_module, "paged_attention", noting)


@pytest.mark.parametrize("tokens", [40, 301, 304])
@pytest.mark.parametrize("window", [8, 32, 64])
def test_prefill_keeps_to_the_budget(tmp_path: Path, tokens: int, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    attended = Attended(monkeypatch)
    stored(tmp_path, tokens, window=window)
    positions = range(0, tokens, window)
    assert len(attended.beside) == 4 * len(positions)
    for position, beside in zip(positions, attended.beside[::4], strict=True):
        assert beside <= min(BUDGET, position)
        if position >= BUDGET:  # and it is used up, but for the blocks that do not fill the local window
            assert beside > BUDGET - tiny.BLOCK


@pytest.mark.parametrize("budget", [tiny.SINK + tiny.LOCAL, BUDGET, BUDGET + 7, 200])
def test_asking_keeps_to_the_budget(document: Path, policy: str, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On average over the layers, and exactly: retrieval gives each layer's share to another at most. ACRE spends
    a part of it on single tokens."""
    attended = Attended(monkeypatch)
    with tiny.opened(tiny.model(), document, budget) as session:
        task = session.task(tiny.question(tiny.tokens(9)))
        run = session.start(tiny.question(tiny.tokens(9, 10)), policy, 8)
        share = len(task.candidates) if policy == "full" else task.block_budget
        assert task.block_budget == (budget - tiny.SINK) // tiny.BLOCK
        for number, token in enumerate(tiny.tokens(8).tolist()):
            fed_before = 9 + number - 1 if number else 0  # question and answer count beside the budget
            assert run.attended_tokens == [beside - fed_before for beside in attended.beside[-4:]]
            for blocks in run.blocks_of_layers:
                ids = blocks.tolist()
                assert ids == sorted(set(ids))
                assert set(ids) <= set(task.candidates)
                assert set(ids) <= run.attended
            lengths = [len(blocks) for blocks in run.blocks_of_layers]
            if policy.startswith("acre"):
                assert max(run.attended_tokens) <= budget
            elif policy.split(":")[0] in ("heads", "hybrid", "lexical"):  # what they spend on whole sentences
                assert sum(run.attended_tokens) <= 4 * budget
                assert sum(run.attended_tokens) > 4 * (min(budget, task.tokens) - 3 * tiny.BLOCK)
            else:
                assert sum(lengths) == 4 * share
                assert all(share // 2 <= length <= max(2 * share, share) for length in lengths)
                assert policy == "full" or sum(run.attended_tokens) <= 4 * budget
            run.step(token)


@pytest.mark.parametrize("budget", [tiny.SINK + tiny.LOCAL, BUDGET + 3 * tiny.BLOCK, 1 << 20])
def test_a_question_may_have_a_budget_of_its_own(document: Path, policy: str, budget: int) -> None:
    """Then all is as in a session of that budget, and the next question has its own again."""
    question, answer = tiny.question(tiny.tokens(9, 10)), tiny.tokens(4, 11)
    usual, found = asked(document, policy, 10), []
    for of_session, of_question in ((budget, None), (BUDGET, budget)):
        with tiny.opened(tiny.model(), document, of_session) as session:
            run = session.start(question, policy, 4, of_question)
            ranking, chosen = run.ranking, [ids.tolist() for ids in run.blocks_of_layers]
            logits = torch.stack([run.logits, *(run.step(int(token)) for token in answer)])
            found.append((ranking, chosen, logits))
            if of_question:
                assert torch.equal(tiny.answer_logits(session, question.ids, policy, tiny.tokens(6, 11)), usual)
    (ranking, chosen, logits), (again, chosen_again, logits_again) = found
    assert chosen == chosen_again
    assert torch.equal(ranking, again)
    assert torch.equal(logits, logits_again)


@pytest.mark.parametrize("positions", ["clamped", "compact", "original"])
def test_following_an_answer_is_stepping_through_it(positions: str, tmp_path: Path) -> None:
    """In one pass where the selection stays, with room or without; token by token where it does not."""
    folder = stored(tmp_path, positions=positions)
    question = tiny.question(tiny.tokens(9, 10))
    with tiny.opened(tiny.model(), folder) as session:
        for policy in POLICIES:
            for length, max_tokens in ((1, 0), (2, 0), (7, 7), (40, 0)):
                answer = tiny.tokens(length, 11)
                steps, run = (session.start(question, policy, max_tokens) for _ in range(2))
                expected = torch.stack([steps.logits, *(steps.step(int(token)) for token in answer[:-1])])
                before = [ids.tolist() for ids in run.blocks_of_layers]
                found = session.teacher_force([run], answer)[0]
                assert (found - expected).abs().max() < 1e-4, (policy, length)
                kept = [ids.tolist() for ids in run.blocks_of_layers] == before
                assert kept or not run.policy.selects_once


def test_policies_that_go_through_the_model_together_are_each_as_alone(document: Path) -> None:
    """All of them in one batch, and of one of them three budgets: those that scout, deep or not, and those that do
    not; those whose selection stays, and those that choose at every token."""
    question, answer = tiny.question(tiny.tokens(9, 10)), tiny.tokens(6, 11)
    settings = [(policy, 0) for policy in POLICIES] + [("heads", 40), ("heads", 120), ("heads", 0)]
    with tiny.opened(tiny.model(), document) as session:
        together = session.start_all([(question, policy, budget) for policy, budget in settings], 6)
        chosen = [str(run.blocks_of_layers) for run in together]
        followed = session.teacher_force(together, answer)
        for (policy, budget), run, ours, logits in zip(settings, together, chosen, followed, strict=True):
            alone = session.start(question, policy, 6, budget or None)
            assert ours == str(alone.blocks_of_layers), policy
            torch.testing.assert_close(run.ranking, alone.ranking, atol=1e-5, rtol=1e-3)
            assert logits.shape == (6, tiny.VOCABULARY)
            assert (logits - session.teacher_force([alone], answer)[0]).abs().max() < 1e-4, policy
            assert run.attended_tokens == alone.attended_tokens


def test_another_question_is_another_choice(document: Path) -> None:
    """Otherwise the tests of choosing policies would show little."""
    with tiny.opened(tiny.model(), document, BUDGET + 10 * tiny.BLOCK) as session:
        for policy in CHOOSING:
            runs = [session.start(tiny.question(tiny.tokens(9, seed)), policy, 0) for seed in (10, 20, 30)]
            assert len({str(run.blocks_of_layers) for run in runs}) > 1, policy


def test_actqkv_moves_the_budget_between_layers(document: Path) -> None:
    """Otherwise the test above would show nothing about the dynamic cut-off."""
    with tiny.opened(tiny.model(), document, BUDGET + 10 * tiny.BLOCK) as session:
        run = session.start(tiny.question(tiny.tokens(9, 10)), "actqkv", 8)
        run.step(3)
        assert len({len(blocks) for blocks in run.blocks_of_layers}) > 1


class Changing(QueryDriven):
    """A policy that takes another random choice of blocks, another number of them, at every call."""

    scout_layers = 0

    def __init__(self, candidates: range) -> None:
        self.candidates = candidates
        self.draw = torch.Generator().manual_seed(1)
        self.selected: list[Tensor] = []

    def begin(self, step: str) -> None:
        pass

    def select(self, layer: int, queries: Tensor) -> Tensor:
        count = int(torch.randint(0, len(self.candidates) + 1, (1,), generator=self.draw))
        order = torch.randperm(len(self.candidates), generator=self.draw)[:count]
        self.selected.append(order.sort().values + self.candidates.start)
        return self.selected[-1]

    def ranking(self, mass: Tensor) -> Tensor:
        return mass


@pytest.mark.parametrize("policy", ["h2o", "snapkv", "infllm", "quest", "acre:attended"])
def test_what_was_not_kept_is_asked_for(policy: str, tmp_path: Path) -> None:
    """Of a document read without baselines; it is no worse for it."""
    folder = stored(tmp_path, baselines=False)
    alone = asked(folder, "acre", 10)
    with tiny.opened(tiny.model(), folder) as session:
        with pytest.raises(UsageError, match="read without") as caught:
            session.start(tiny.question(tiny.tokens(9, 10)), policy, 0)
        assert "--baselines" in caught.value.hint
        assert caught.value.exit_code == 2
        again = tiny.answer_logits(session, tiny.tokens(9, 10), "acre", tiny.tokens(6, 11))
        assert torch.equal(again, alone)


@pytest.mark.parametrize("damage", ["flip", "gone", "short"])
def test_damage_of_what_only_some_methods_need(damage: str, document: Path, tmp_path: Path) -> None:
    """Those say so; the others never read it."""
    folder = tmp_path / "document"
    shutil.copytree(document, folder)
    path = folder / "methods.safetensors"
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage != "gone":
        data[len(data) // 2] ^= 1
        path.write_bytes(data[: len(data) - (damage == "short")])
    with tiny.opened(tiny.model(), folder) as session:
        for policy in ("acre", "acre:layer:attended", "quest", "h2o", "snapkv", "infllm"):
            for _ in range(2):  # a second try is no better
                with pytest.raises(StoreDamaged, match=r"methods\.safetensors"):
                    session.start(tiny.question(tiny.tokens(9, 10)), policy, 0)
    for policy in ("heads", "actqkv", "lexical", "hybrid", "streaming", "full"):
        assert torch.equal(asked(folder, policy, 10), asked(document, policy, 10))
    assert len(verify_document(folder)) == 1


@pytest.mark.parametrize(
    ("policy", "name", "forge"),
    [
        ("acre", "l1", lambda l1: l1[:, :20]),
        ("acre", "l1", lambda l1: l1.int()),
        ("h2o", "h2o", lambda scores: scores[0]),
        ("snapkv", "snapkv", lambda scores: scores[:, :20]),
        ("quest", "bounds", lambda bounds: bounds[:, :, :1]),
        ("infllm", "anchors", lambda anchors: anchors[..., :8]),
        ("acre:attended", "l1_attended_tokens", lambda tokens: tokens + 10_000),
        ("acre:attended", "l1_attended_tokens", lambda tokens: tokens * 0),
    ],
    ids=["short", "integers", "one row", "short scores", "half", "narrow", "places beyond", "places elsewhere"],
)
def test_a_forged_file_with_the_right_checksum(
    policy: str, name: str, forge: Callable[[Tensor], Tensor], document: Path, tmp_path: Path
) -> None:
    """A store may come from elsewhere: what does not fit the document is damage, not an answer or a crash."""
    folder = tmp_path / "document"
    shutil.copytree(document, folder)
    with DocumentReader(folder) as reader:
        methods = reader.tensors(names_in(METHODS))
    methods[name] = forge(methods[name]).contiguous()
    written = write_tensors(folder / "methods.safetensors", methods)
    body, _ = jsonfile.read(folder / "manifest.json")
    (folder / "manifest.json").write_bytes(jsonfile.encode({**body, "methods": written.model_dump()}))
    with tiny.opened(tiny.model(), folder) as session, pytest.raises(StoreDamaged):
        session.start(tiny.question(tiny.tokens(9, 10)), policy, 0)


@pytest.mark.parametrize(
    ("policy", "index", "methods"),
    [
        ("streaming", 0, 0),
        ("lexical", 0, 0),
        ("hybrid", 1, 0),
        ("actqkv", 1, 0),
        ("quest", 0, 1),
        ("acre:attended", 0, 1),
    ],
)
def test_a_question_reads_what_its_policy_needs_once(policy: str, index: int, methods: int, document: Path) -> None:
    with DocumentReader(document) as reader, open_session(tiny.model(), reader) as session:
        for _ in range(2):
            session.start(tiny.question(tiny.tokens(9, 10)), policy, 0)
        files = reader.manifest.index.bytes, reader.manifest.methods.bytes  # type: ignore[union-attr]
        assert reader.bytes_read.index == index * files[0] + methods * files[1]


def test_what_is_selected_is_attended(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very values of the chosen blocks, from the store, when the choice changes at every step."""
    attended = Attended(monkeypatch)
    with DocumentReader(document) as reader, tiny.opened(tiny.model(), document) as session:
        policy = Changing(session.layout.candidates(session.tokens))
        monkeypatch.setattr(session_module, "make_policy", lambda name, task: policy)
        run = session.start(tiny.question(tiny.tokens(9, 10)), "changing", 30)
        for token in tiny.tokens(30).tolist():
            run.step(token)
        sink = torch.arange(tiny.SINK // tiny.BLOCK)
        for call, (ids, values) in enumerate(zip(policy.selected, attended.far_values, strict=True)):
            whole = reader.read_blocks(call % 4, torch.cat([sink, ids]))[:, 1].transpose(0, 1).flatten(1, 2)
            short = session.tokens % tiny.BLOCK if -(-session.tokens // tiny.BLOCK) - 1 in ids else 0
            assert torch.equal(values, whole[:, : whole.shape[1] - (tiny.BLOCK - short if short else 0)])
        assert len(policy.selected) == 4 * 31
