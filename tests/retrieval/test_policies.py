"""The policies' choices and rankings, on tasks made by hand and in sessions with a planted key."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean, pstdev
from typing import Any, Literal

import pytest
import tiny
import torch
from hand_made import (
    BLOCK,
    BLOCKS,
    DIM,
    HEADS,
    KV_HEADS,
    LAYERS,
    RETRIEVAL_HEADS,
    SINK,
    TOKENS,
    lexical,
    make_task,
    normal,
    question,
    run,
    top,
)
from torch import Tensor

from actqkv_cli.errors import UsageError
from actqkv_cli.retrieval.lexical import lexical_scores
from actqkv_cli.retrieval.names import policy_names
from actqkv_cli.retrieval.policies import (
    check_policy,
    heads,
    hybrid,
    make_policy,
    of_several_documents,
    usual_budget,
)
from actqkv_cli.retrieval.policy import Pass, PerToken, RetrievalPolicy, Selection, Task, best
from actqkv_kernels import activation_probe, block_scores, block_votes
from actqkv_kernels.activation_probe import activation_weights

SPECS = [
    *policy_names(),
    "acre:layer:attended",
    "acre:random",
    "acre:l1",
    "actqkv:mean:uniform",
    "actqkv:paper",
    "actqkv:probe",
]


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("candidates", [range(1, 46), range(1, 4), range(1, 2), range(1, 1), range(0, 0)])
@pytest.mark.parametrize("blocks", [0, 1, 7, 100])
def test_what_is_selected_are_ascending_unique_candidates(name: str, candidates: range, blocks: int) -> None:
    """Whole ones, and single tokens of others."""
    for choices in run(make_policy(name, make_task(blocks, candidates=candidates)), 1):
        for chosen in choices:
            for ids in (chosen.blocks, chosen.tokens):
                assert ids.dtype == torch.int64
                assert ids.device.type == "cpu"
                assert ids.tolist() == sorted(set(ids.tolist()))
            assert chosen.states is None or chosen.states.shape == (2, KV_HEADS, len(chosen.tokens), DIM)
            places = set((chosen.tokens // BLOCK).tolist())
            assert set(chosen.blocks.tolist()) <= set(candidates) - places
            assert places <= set(candidates)
            everything = name == "full" or blocks == 100
            if name.startswith("acre") or everything or name.startswith(("actqkv", "heads", "hybrid")):
                continue
            assert len(chosen.blocks) == min(blocks, len(candidates))


@pytest.mark.parametrize("name", ["actqkv", "actqkv:paper", "actqkv:uniform", "heads"])
@pytest.mark.parametrize("blocks", [0, 1, 7, 10, 45, 100])
def test_the_layers_share_the_budget_exactly(name: str, blocks: int) -> None:
    policy = make_policy(name, make_task(blocks))
    passes = [[len(chosen.blocks) for chosen in choices] for choices in run(policy, 2)]
    for counts in passes[1:] if policy.scout_layers else passes:
        assert sum(counts) == min(blocks, 45) * LAYERS
        assert (name.startswith("actqkv") and "uniform" not in name) or len(set(counts)) == 1
    if policy.scout_layers:  # the scouts attend to the sink alone
        assert set(passes[0]) == {0}


@pytest.mark.parametrize("option", ["", ":paper"])
def test_actqkv_shares_by_how_sharp_the_step_before_was(option: str) -> None:
    """The paper by how flat it was."""
    policy = make_policy(f"actqkv{option}", make_task())
    policy.begin("question")
    flat, sharp = torch.zeros(HEADS, 5, DIM), 50 * normal(5, HEADS, 5, DIM)
    one, other = (sharp, flat) if option else (flat, sharp)
    even = [len(chosen_by(policy, layer, one if layer else other)) for layer in range(LAYERS)]
    assert even == [10] * LAYERS
    policy.begin("decode")
    shares = [len(chosen_by(policy, layer, other if layer else one)) for layer in range(LAYERS)]
    assert shares[0] == 20 > max(shares[1:])
    policy.begin("decode")
    assert len(chosen_by(policy, 0, one)) < 10


def chosen_by(policy: RetrievalPolicy, layer: int, queries: Tensor) -> list[int]:
    chosen = policy.select(layer, queries)
    assert isinstance(chosen, Tensor)
    return chosen.tolist()


@pytest.mark.parametrize("option", ["", ":mean", ":probe", ":mean:probe"])
def test_actqkv_takes_the_blocks_of_most_votes(option: str) -> None:
    """Of the question's own tokens, by their activation or all alike; or of the one probe-query. Then a token's."""
    task = make_task()
    policy = make_policy(f"actqkv{option}:uniform", task)
    candidates = slice(task.candidates.start, task.candidates.stop)
    steps: list[tuple[Pass, int, slice]] = [("question", 15, task.own), ("decode", 1, slice(None))]
    for step, window, own in steps:
        policy.begin(step)
        for layer in range(LAYERS):
            queries = question(3, layer, window)[:, own]
            count = queries.shape[1]
            weights = torch.full((count,), 1 / count) if "mean" in option else activation_weights(queries)
            if "probe" in option:
                queries, weights = torch.einsum("hwd,w->hd", queries, weights)[:, None], torch.ones(1)
            votes = torch.zeros(BLOCKS)
            votes[candidates] = block_votes(queries, task.resident.representatives[layer, candidates, 0], weights)
            assert chosen_by(policy, layer, question(3, layer, window)) == top(votes, task.candidates, 10)


def test_a_question_without_a_word_of_its_own_has_the_votes_of_all_tokens() -> None:
    policy = make_policy("actqkv", make_task(own=slice(7, 7)))
    policy.begin("question")
    assert len(chosen_by(policy, 0, question(3, 0))) == 10


@pytest.mark.parametrize("score", ["dot", "cosine"])
@pytest.mark.parametrize("option", ["", ":mean"])
def test_the_published_actqkv_takes_the_best_by_probe_query(option: str, score: Literal["dot", "cosine"]) -> None:
    """Or, for ablation, by the mean query."""
    task = replace(make_task(), score=score)
    policy = make_policy(f"actqkv:paper{option}", task)
    policy.begin("question")
    for layer in range(LAYERS):
        queries = question(3, layer)
        probe = queries.mean(dim=1) if option else activation_probe(queries)
        scores = block_scores(probe, task.resident.representatives[layer], score)
        assert chosen_by(policy, layer, queries) == top(scores, task.candidates, 10)


@pytest.mark.parametrize("every", [4, 16])
@pytest.mark.parametrize("name", ["actqkv", "actqkv:uniform", "infllm", "quest"])
def test_what_is_selected_may_stay_for_some_tokens(name: str, every: int) -> None:
    """The first token of an answer selects anew, and then each fourth or sixteenth, as each does without the option."""
    steps = 2 * every + 1
    kept = run(make_policy(f"{name}:every{every}", make_task()), 5, steps)[1:]
    for number, layers in enumerate(kept):
        latest = kept[number - number % every]
        assert [one.blocks.tolist() for one in layers] == [one.blocks.tolist() for one in latest]
    first, *_ = run(make_policy(name, make_task()), 5, 1)[1:]
    assert [one.blocks.tolist() for one in kept[0]] == [one.blocks.tolist() for one in first]
    assert [one.blocks.tolist() for one in kept[0]] != [one.blocks.tolist() for one in kept[every]]


@pytest.mark.parametrize("name", ["actqkv", "infllm", "quest"])
def test_what_is_chosen_on_the_device_is_what_is_selected(name: str) -> None:
    for blocks in (0, 3, 10, 60):
        policies = [make_policy(name, make_task(blocks)) for _ in range(2)]
        for step in ("question", "decode", "decode"):
            for policy in policies:
                policy.begin(step)
            assert isinstance(policies[1], PerToken)
            for layer in range(LAYERS):
                queries = question(7, layer, 1)
                selected, chosen = policies[0].select(layer, queries), policies[1].choose(layer, queries)
                assert isinstance(selected, Tensor)
                assert len(chosen.ids) == policies[1].max_blocks()
                assert int(chosen.count) == len(selected)
                assert chosen.ids[chosen.ids >= 0].tolist() == selected.tolist()


def test_best_counts_from_the_first_candidate() -> None:
    scores = torch.tensor([0.1, 5, 3, 4])
    assert best(scores, 2, 10).tolist() == [11, 13]
    assert best(scores, 9, 10).tolist() == [10, 11, 12, 13]
    assert best(scores, 0, 10).tolist() == []


@pytest.mark.parametrize("name", ["oracle", "", "Heads", "heads.py", "../heads", ":uniform"])
def test_an_unknown_policy_is_refused(name: str) -> None:
    for call in (lambda: make_policy(name, make_task()), lambda: usual_budget(name, tiny.reading(), BLOCK)):
        with pytest.raises(UsageError, match="no policy") as caught:
            call()
        assert all(known in caught.value.hint for known in policy_names())
        assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("spec", "option", "known"),
    [
        ("acre:laier", "laier", ["layer", "mean", "attended"]),
        ("acre:layer:uniform", "uniform", ["layer", "mean", "attended"]),
        ("heads:", "", ["none"]),
        ("actqkv:mean:", "", ["mean", "uniform"]),
        ("quest:layer", "layer", ["every4", "every16"]),
        ("streaming:layer", "layer", ["none"]),
        ("full:full", "full", ["none"]),
    ],
)
def test_an_unknown_option_is_refused(spec: str, option: str, known: list[str]) -> None:
    for call in (lambda: make_policy(spec, make_task()), lambda: check_policy(spec)):
        with pytest.raises(UsageError, match=f"has no option {option!r}") as caught:
            call()
        assert all(word in caught.value.hint for word in known)


@pytest.mark.parametrize("name", SPECS)
def test_what_is_known_beforehand_is_what_is_read(name: str) -> None:
    """So that nothing is prefetched in vain. That of one choice for all queries is known."""
    policy = make_policy(name, make_task())
    for step in ("scout", "question") if policy.scout_layers else ("question",):
        policy.begin(step)
        for layer in range(policy.scout_layers if step == "scout" else LAYERS):
            known = policy.known_blocks(layer).tolist()
            chosen = policy.select(layer, question(1, layer, 15))
            read = chosen.read(BLOCK) if isinstance(chosen, Selection) else chosen
            once = policy.selects_once and not name.startswith("acre")
            assert known == (read.tolist() if once else [])


@pytest.mark.parametrize("name", SPECS)
def test_a_policy_says_what_it_needs(name: str) -> None:
    """Of what is stored it loads that, at once, and no more."""
    task = make_task()
    loaded: list[set[str]] = []

    def load(names: Collection[str]) -> Mapping[str, Tensor]:
        loaded.append({*names})
        return task.resident.load(names)

    policy = make_policy(name, replace(task, resident=replace(task.resident, load=load)))
    assert loaded[-1] == {*policy.needs}
    run(policy, 1)
    assert set().union(*loaded) == {*policy.needs}
    of_class: Any = type(policy)
    assert {*policy.needs} <= {*of_class.needs} or name.endswith("attended")


def test_what_needs_nothing_of_one_document_alone_takes_several() -> None:
    assert of_several_documents() == ["actqkv", "full", "heads", "hybrid", "lexical", "streaming"]


@pytest.mark.parametrize("spec", ["h2o", "snapkv", "infllm", "quest", "acre:attended"])
def test_what_was_not_kept_is_asked_for(spec: str) -> None:
    """A document read without baselines has `l1` alone."""
    task = make_task()
    resident = replace(task.resident, load=lambda names: {"l1": task.resident.load(names)["l1"]})
    with pytest.raises(UsageError, match="read without") as caught:
        make_policy(spec, replace(task, resident=resident))
    assert "--baselines" in caught.value.hint
    make_policy("acre", replace(task, resident=resident))


def test_usual_budgets() -> None:
    """A policy that knows its best number of blocks gets them; any other what the document was read with."""
    how = tiny.reading(budget=1000)
    assert usual_budget("heads", how, BLOCK) == tiny.SINK + heads.BLOCKS * BLOCK
    assert usual_budget("heads", how, BLOCK, turn_blocks=1) == tiny.SINK + (heads.BLOCKS + 1) * BLOCK
    assert usual_budget("heads", how, BLOCK, turn_blocks=100) == tiny.SINK + tiny.LOCAL + heads.BLOCKS * BLOCK
    assert usual_budget("actqkv:uniform", how, BLOCK) == usual_budget("actqkv", how, BLOCK)
    assert usual_budget("quest", how, BLOCK) == usual_budget("acre:layer", how, BLOCK) == 1000


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


def head_scores(task: Task, seed: int) -> Tensor:
    """Of every block by the hand-made question: square roots of all heads' masses, and a share of the neighbours'."""
    queries = [question(seed, layer) for layer in range(LAYERS)]
    found = sum(heads.head_mass(task, head.layer, head.head, queries[head.layer]).sqrt() for head in RETRIEVAL_HEADS)
    assert isinstance(found, Tensor)
    scores = [0.0, *found.tolist(), 0.0]
    beside = [scores[i] + heads.NEIGHBOUR * (scores[i - 1] + scores[i + 1]) for i in range(1, len(scores) - 1)]
    return torch.tensor([0.0] * (SINK // BLOCK) + beside[SINK // BLOCK :])


def test_heads_ranks_by_all_heads_and_leaves_out_the_sink() -> None:
    task = make_task()
    policy = heads.Policy(task)
    assert policy.scout_layers == 3
    chosen = run(policy, 4)
    ranking = policy.ranking(torch.full((50,), 99.0))
    torch.testing.assert_close(ranking, head_scores(task, 4))
    assert (ranking[: SINK // BLOCK] == 0).all()
    assert (ranking[SINK // BLOCK :] > 0).all()
    for choices in chosen[1:]:
        for layer in choices:
            assert layer.blocks.tolist() == top(ranking, task.candidates, len(layer.blocks))


def test_hybrid_fuses_the_heads_and_the_words() -> None:
    """Both standardised over the blocks behind the sink, and added; the least gets 0."""
    task, first = make_task(text="Who built it?"), SINK // BLOCK
    policy = make_policy("hybrid", task)
    chosen = run(policy, 4)
    ranking = policy.ranking(torch.zeros(50))
    by_words = make_policy("lexical", task).ranking(torch.zeros(50))
    rows = [scores[first:].tolist() for scores in (head_scores(task, 4), by_words)]
    total = [sum((row[i] - mean(row)) / pstdev(row) for row in rows) for i in range(len(rows[0]))]
    expected = torch.tensor([0.0] * first + [score - min(total) for score in total])
    torch.testing.assert_close(ranking, expected, atol=1e-5, rtol=1e-4)
    for choices in chosen[1:]:
        for layer in choices:
            assert layer.blocks.tolist() == top(ranking, task.candidates, len(layer.blocks))


def test_fusion_knows_no_scale_and_leaves_out_what_says_nothing() -> None:
    first, other = normal(20, 30), normal(21, 30).clamp(min=0)
    fused = hybrid.fused(first, other)
    torch.testing.assert_close(hybrid.fused(other * 1000 + 5, first / 50 - 1), fused, atol=1e-4, rtol=1e-4)
    assert float(fused.min()) == 0
    alone = hybrid.fused(first, torch.full((30,), 3.0))
    torch.testing.assert_close(alone, (first - first.min()) / first.std(correction=0))
    assert hybrid.fused(torch.zeros(1), torch.ones(1)).tolist() == [0]


def test_neighbours_get_a_share() -> None:
    scores = torch.tensor([4.0, 0.0, 1.0, 0.0, 0.0, 2.0])
    assert heads.with_neighbours(scores, torch.ones(6).bool()).tolist() == [4.0, 2.5, 1.0, 0.5, 1.0, 2.0]
    assert heads.with_neighbours(torch.tensor([0.0, 0.0, 6.0]), torch.tensor([False, False, True])).tolist() == [
        0.0,
        0.0,
        6.0,
    ]  # the sink stays unranked


def test_hybrid_attends_to_one_span_where_one_place_stands_out() -> None:
    def blocks(
        scores: dict[int, float], budget: int = 16, count: int = 200, candidates: range | None = None
    ) -> list[int]:
        task = make_task(budget, candidates=candidates or range(1, count - 1))
        task = replace(task, tokens=count * BLOCK)
        score = torch.zeros(count)
        for block, value in scores.items():
            score[block] = value
        return hybrid.Policy(task).selection(score).blocks.tolist()

    alone = {40: 9.0, 42: 1.0, 120: 0.5}
    assert blocks(alone) == [38, 39, 40, 41, 42, 43]
    assert blocks(alone, budget=3) == [40, 41, 42]  # the budget is a limit
    assert len(blocks({40: 9.0, 42: 8.0, 100: 8.0, 120: 9.0})) == 16  # several places stand out
    assert blocks(alone, candidates=range(38, 46)) == list(range(38, 46))  # there is room for everything


@pytest.mark.parametrize("name", ["heads", "hybrid"])
def test_heads_needs_heads(name: str) -> None:
    task = make_task()
    with pytest.raises(UsageError, match="no retrieval heads"):
        make_policy(name, replace(task, resident=replace(task.resident, heads=())))


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

    def noting(self: Any, layer: int, query: Tensor) -> Selection:
        queries.setdefault(layer, query.clone())
        return real(self, layer, query)

    monkeypatch.setattr(heads.Policy, "select", noting)
    with tiny.opened(model, tmp_path / "document") as session:
        before = session.start(asked, "heads", 0)
        assert int(before.ranking.argmax()) != block
        assert (before.ranking > 0).tolist() == [False] + [True] * 37  # the sink is one block
        planted = session.resident.head_keys.clone()
        query = queries[1][tiny.HEADS[0].head].mean(dim=0)
        planted[0, block * tiny.BLOCK + 5] = 100 * query / query.norm()
        session.resident = replace(session.resident, load=lambda names: {"head_keys": planted})
        run = session.start(asked, "heads", 4)
        for token in (1, 2, 3):
            assert int(run.ranking.argmax()) == block
            assert all(block in ids.tolist() for ids in run.blocks_of_layers)
            run.step(token)


@pytest.mark.parametrize("policy", ["actqkv", "streaming", "full", "quest", "infllm", "h2o", "snapkv"])
def test_the_ranking_is_the_attention_that_blocks_received(policy: str, tmp_path: Path) -> None:
    """With all attended: the mean of stock attention over layers, heads and question tokens, behind the sink."""
    model, document = tiny.model(), tiny.tokens(61)
    ids = torch.cat([document, tiny.tokens(9, 10)])
    tiny.ingest(model, document, tmp_path / "document", tiny.reading(window=8, baselines=True))
    with tiny.opened(model, tmp_path / "document") as session:
        ranking = session.start(tiny.question(ids[61:]), policy, 0).ranking
    received = tiny.stock(model, ids).attention[:, :, 61:, :61].mean(dim=(0, 1, 2))
    received[: tiny.SINK] = 0
    expected = heads.block_sums(received, tiny.BLOCK)
    assert 0 < float(ranking.sum()) < 1
    torch.testing.assert_close(ranking, expected, atol=1e-6, rtol=1e-3)


def test_a_follow_up_is_ranked_by_the_turn_before_it_too() -> None:
    """For half; and alone where it has no words of its own that the document knows."""
    task = make_task(text="When was it finished?")
    after = replace(task, before="Who built the lighthouse?\nEdda Morrow")
    alone, before = lexical(task.text) * task.ranked_blocks, lexical(after.before) * task.ranked_blocks
    assert torch.equal(lexical_scores(task), alone)
    torch.testing.assert_close(lexical_scores(after), alone + before / 2)
    heads = normal(3, 50).abs()
    scores = [make_policy("hybrid", one).score(heads) for one in (task, after)]  # type: ignore[attr-defined]
    assert not torch.equal(*scores)
