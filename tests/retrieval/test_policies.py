"""The policies' choices and rankings, on tasks made by hand and in sessions with a planted key."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from actqkv_cli.errors import UsageError
from actqkv_cli.retrieval.policies import actqkv, heads, make_policy, policy_names
from actqkv_cli.retrieval.policy import Resident, RetrievalPolicy, Task, best
from actqkv_cli.store.manifest import RetrievalHead

LAYERS, HEADS, KV_HEADS, DIM = 4, 4, 2, 16
TOKENS, BLOCK, SINK = 397, 8, 8
RETRIEVAL_HEADS = (
    RetrievalHead(layer=1, head=2, score=1),
    RetrievalHead(layer=2, head=0, score=0.5),
    RetrievalHead(layer=1, head=1, score=0.5),
)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_task(blocks: int = 10, own: slice = slice(3, 12), candidates: range = range(1, 46)) -> Task:
    count = -(-TOKENS // BLOCK)
    resident = Resident(
        representatives=normal(0, LAYERS, count, 1, KV_HEADS, DIM),
        query_heads=HEADS,
        heads=RETRIEVAL_HEADS,
        head_keys=normal(1, 3, TOKENS, DIM),  # (1, 0), (1, 1), (2, 0)
        density=(0.9, 0.8, 0.5, 0.3),
    )
    return Task(resident, candidates, blocks, BLOCK, TOKENS, SINK, own)


def run(policy: RetrievalPolicy, seed: int, steps: int = 4) -> list[list[Tensor]]:
    """What a question of 15 tokens and the steps after it choose, layer by layer, as a session would ask."""
    passes = [("question", 15), *[("decode", 1)] * steps]
    if policy.scout_layers:
        passes.insert(0, ("scout", 15))
    chosen = []
    for number, (step, window) in enumerate(passes):
        policy.begin(step)  # type: ignore[arg-type]
        layers = policy.scout_layers if step == "scout" else LAYERS
        queries = [3 * normal(seed + 100 * number + layer, HEADS, window, DIM) for layer in range(layers)]
        chosen.append([policy.select(layer, query) for layer, query in enumerate(queries)])
    return chosen


@pytest.mark.parametrize("name", policy_names())
@pytest.mark.parametrize("candidates", [range(1, 46), range(1, 4), range(1, 2), range(1, 1), range(0, 0)])
@pytest.mark.parametrize("blocks", [0, 1, 7, 100])
def test_choices_are_ascending_unique_candidates(name: str, candidates: range, blocks: int) -> None:
    for choices in run(make_policy(name, make_task(blocks, candidates=candidates)), 1):
        for ids in choices:
            assert ids.dtype == torch.int64
            assert ids.device.type == "cpu"
            assert ids.tolist() == sorted(set(ids.tolist()))
            assert set(ids.tolist()) <= set(candidates)


@pytest.mark.parametrize("name", ["actqkv", "heads"])
@pytest.mark.parametrize("blocks", [0, 1, 7, 10, 45, 100])
def test_the_layers_share_the_budget_exactly(name: str, blocks: int) -> None:
    policy = make_policy(name, make_task(blocks))
    passes = run(policy, 2)
    for choices in passes[1:] if policy.scout_layers else passes:
        assert sum(map(len, choices)) == min(blocks, 45) * LAYERS
    if policy.scout_layers:  # the scouts take few blocks, and never more than the budget
        assert {len(ids) for ids in passes[0]} == {min(heads.SCOUT_BLOCKS, blocks)}


def test_actqkv_shares_by_the_densities_of_the_step_before() -> None:
    policy = actqkv.Policy(make_task())
    policy.begin("question")
    flat, sharp = torch.zeros(HEADS, 5, DIM), 50 * normal(5, HEADS, 5, DIM)
    even = [len(policy.select(layer, sharp if layer else flat)) for layer in range(LAYERS)]
    assert even == [10] * LAYERS
    policy.begin("decode")
    shares = [len(policy.select(layer, flat if layer else sharp)) for layer in range(LAYERS)]
    assert shares[0] == 20 > max(shares[1:])
    policy.begin("decode")
    assert len(policy.select(0, flat)) < 10


def test_actqkv_takes_the_best_by_probe_query() -> None:
    policy, task, query = actqkv.Policy(make_task()), make_task(), normal(3, HEADS, 5, DIM)
    policy.begin("question")
    known = task.resident.representatives.clone()
    scores = actqkv.candidate_scores(query, known[1], task.candidates, "dot")
    order = sorted(task.candidates, key=lambda block: -float(scores[block - 1]))
    assert policy.select(1, query).tolist() == sorted(order[:10])


def test_best_counts_from_the_first_candidate() -> None:
    scores = torch.tensor([0.1, 5, 3, 4])
    assert best(scores, 2, 10).tolist() == [11, 13]
    assert best(scores, 9, 10).tolist() == [10, 11, 12, 13]
    assert best(scores, 0, 10).tolist() == []


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(UsageError, match="no policy"):
        make_policy("oracle", make_task())


def test_question_mass_is_the_formula() -> None:
    """Attention of the question's tokens to every token behind the sink, in float64, a pair at a time."""
    task, queries, keys = make_task(), 2 * normal(6, 2, 70, DIM), normal(7, 2, TOKENS + 3, DIM)
    found = heads.question_mass(queries, keys, task)
    expected = torch.zeros(2, -(-TOKENS // BLOCK), dtype=torch.float64)
    for head in range(2):
        for token in range(70):
            scores = keys[head, SINK:TOKENS].double() @ queries[head, token].double() / 4
            for place, p in enumerate(scores.softmax(dim=0).tolist(), SINK):
                expected[head, place // BLOCK] += p / 70
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2))
    assert (found[:, : SINK // BLOCK] == 0).all()


@pytest.mark.parametrize(("layer", "head", "row"), [(1, 2, 1), (1, 3, 1), (1, 1, 0), (1, 0, 0), (2, 0, 2), (2, 1, 2)])
def test_a_head_looks_at_the_keys_of_its_group(layer: int, head: int, row: int) -> None:
    task, queries = make_task(), normal(8, HEADS, 15, DIM)
    assert task.resident.head_keys is not None
    own = queries[head : head + 1, task.own]
    expected = heads.question_mass(own, task.resident.head_keys[row : row + 1], task)[0]
    assert torch.equal(heads.head_mass(task, layer, head, queries), expected)


def test_only_the_questions_own_tokens_count() -> None:
    task, queries = make_task(own=slice(3, 12)), normal(9, HEADS, 15, DIM)
    other = queries.clone()
    other[:, :3] = 100
    other[:, 12:] = -100
    assert torch.equal(heads.head_mass(task, 1, 3, other), heads.head_mass(task, 1, 3, queries))
    other[:, 3] = 5
    assert not torch.equal(heads.head_mass(task, 1, 3, other), heads.head_mass(task, 1, 3, queries))


def test_heads_ranks_by_all_heads_and_leaves_out_the_sink() -> None:
    task = make_task()
    policy = heads.Policy(task)
    assert policy.scout_layers == 3
    chosen = run(policy, 4)
    queries = [3 * normal(4 + layer, HEADS, 15, DIM) for layer in range(3)]
    found = sum(heads.head_mass(task, head.layer, head.head, queries[head.layer]).sqrt() for head in RETRIEVAL_HEADS)
    assert isinstance(found, Tensor)
    scores = [0.0, *found.tolist(), 0.0]
    expected = torch.tensor(
        [scores[i] + heads.NEIGHBOUR * (scores[i - 1] + scores[i + 1]) for i in range(1, len(scores) - 1)]
    )
    expected[: SINK // BLOCK] = 0
    ranking = policy.ranking(torch.full((50,), 99.0))
    torch.testing.assert_close(ranking, expected)
    assert (ranking[: SINK // BLOCK] == 0).all()
    assert (ranking[SINK // BLOCK :] > 0).all()
    order = sorted(task.candidates, key=lambda block: -float(ranking[block]))
    for choices in chosen[1:]:
        for ids in choices:
            assert ids.tolist() == sorted(order[: len(ids)])


def test_heads_shares_by_the_scouts_densities_and_those_of_the_calibration() -> None:
    """The last layer, which the scout pass leaves out, counts with what calibration found."""
    lengths = []
    for last in (0.01, 1.0):
        task = make_task()
        resident = replace(task.resident, density=(0.5, 0.5, 0.5, last))
        lengths.append([len(ids) for ids in run(heads.Policy(replace(task, resident=resident)), 4)[1]])
    assert lengths[0][3] < lengths[1][3]
    assert all(high >= low for high, low in zip(lengths[0][:3], lengths[1][:3], strict=True))


def test_heads_needs_heads() -> None:
    task = make_task()
    with pytest.raises(UsageError, match="no retrieval heads"):
        heads.Policy(replace(task, resident=replace(task.resident, heads=())))


@pytest.mark.parametrize("budget", [48, 88])
@pytest.mark.parametrize("block", [3, 20, 32])
def test_a_planted_key_is_found_and_attended_by_all_layers(
    block: int, budget: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One block's keys are made to answer the question's very query, in the heads' keys alone."""
    model, asked = tiny.model(), tiny.question(tiny.tokens(9, 10))
    how = tiny.reading(positions="clamped", budget=budget)
    tiny.ingest(model, tiny.tokens(301), tmp_path / "document", how, tiny.HEADS[:1], 64)
    queries: dict[int, Tensor] = {}
    real = heads.Policy.select

    def noting(self: Any, layer: int, query: Tensor) -> Tensor:
        queries.setdefault(layer, query.clone())
        return real(self, layer, query)

    monkeypatch.setattr(heads.Policy, "select", noting)
    with tiny.opened(model, tmp_path / "document") as session:
        before = session.start(asked, "heads", 0)
        assert int(before.ranking.argmax()) != block
        assert (before.ranking > 0).tolist() == [False] + [True] * 37  # the sink is one block
        keys = session.resident.head_keys
        assert keys is not None
        planted = keys.clone()
        query = queries[1][tiny.HEADS[0].head].mean(dim=0)
        planted[0, block * tiny.BLOCK + 5] = 100 * query / query.norm()
        session.resident = replace(session.resident, head_keys=planted)
        run = session.start(asked, "heads", 4)
        for token in (1, 2, 3):
            assert int(run.ranking.argmax()) == block
            assert all(block in ids.tolist() for ids in run.blocks_of_layers)
            run.step(token)


@pytest.mark.parametrize("policy", ["actqkv", "streaming", "full"])
def test_the_ranking_is_the_attention_that_blocks_received(policy: str, tmp_path: Path) -> None:
    """With all attended: the mean of stock attention over layers, heads and question tokens, behind the sink."""
    model, ids = tiny.model(), torch.cat([tiny.tokens(61), tiny.tokens(9, 10)])
    document = ids[: 37 if policy == "streaming" else 61]
    ids = torch.cat([document, ids[61:]])
    tiny.ingest(model, document, tmp_path / "document", tiny.reading(window=8))
    with tiny.opened(model, tmp_path / "document") as session:
        ranking = session.start(tiny.question(ids[len(document) :]), policy, 0).ranking
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        attention = torch.stack(model(ids[None], use_cache=False, output_attentions=True).attentions)
    model.set_attn_implementation("sdpa")
    received = attention[:, 0, :, len(document) :, : len(document)].mean(dim=(0, 1, 2))
    received[: tiny.reading().sink] = 0
    expected = heads.block_sums(received, tiny.BLOCK)
    assert 0 < float(ranking.sum()) < 1
    torch.testing.assert_close(ranking, expected, atol=1e-6, rtol=1e-3)
