"""ACRE's invariants: what L1 shows, how much is refilled, and that all refilled is full."""

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hand_made import BLOCK, HEADS, KV_HEADS, LAYERS, OWN, TOKENS, make_task, make_tensors, normal, question, run
from torch import Tensor

from actqkv_cli.engine.run import Run
from actqkv_cli.engine.session import Session
from actqkv_cli.errors import UsageError
from actqkv_cli.retrieval.policies import acre, make_policy
from actqkv_cli.retrieval.policies.acre import entropy_ratio, grouping, l1_grouping, refill_volume
from actqkv_cli.retrieval.policy import Selection

OPTIONS = ["", ":mean", ":layer", ":attended", ":head-entropy", ":l1", ":fixed", ":random", ":layer:attended:random"]


def selected(spec: str, seed: int = 1, **task: Any) -> list[Selection]:
    """By layer, for a question; every step of the answer keeps it."""
    _, answer_pass, *steps = run(make_policy(spec, make_task(**task)), seed)
    for step in steps:
        for layer, kept in zip(step, answer_pass, strict=True):
            assert torch.equal(layer.blocks, kept.blocks)
            assert torch.equal(layer.tokens, kept.tokens)
    return answer_pass


def groups_of(candidates: range, size: int) -> list[range]:
    return [candidates[at : at + size] for at in range(0, len(candidates), size)] if size else []


def refilled(chosen: Selection, groups: list[range]) -> list[int]:
    """Which groups are there whole. Every other has exactly one token there, and none of its blocks."""
    blocks, tokens = set(chosen.blocks.tolist()), chosen.tokens.tolist()
    whole = []
    for number, group in enumerate(groups):
        inside = [token for token in tokens if token // BLOCK in group]
        if blocks.isdisjoint(group):
            assert len(inside) == 1
        else:
            assert blocks >= set(group)
            assert inside == []
            whole.append(number)
    assert len(blocks) == sum(len(groups[number]) for number in whole)
    assert len(tokens) == len(groups) - len(whole)
    return whole


# How many groups, and how much of them


@pytest.mark.parametrize("block_size", [2, 8, 32])
def test_grouping_refills_as_many_groups_as_can_be(block_size: int) -> None:
    """L1 and the refilled groups fit in the room, and no size of group would let one more be refilled."""
    for blocks in range(30):
        for room in range(0, 40 * block_size, 7):
            size, most = grouping(blocks, room, block_size)
            volumes = {}
            for n in range(1, blocks + 1):
                entries = math.ceil(blocks / n)
                fits = [k for k in range(entries + 1) if entries + k * (n * block_size - 1) <= room]
                volumes[n] = max(fits, default=-1)
            if max(volumes.values(), default=0) > 0:
                assert most == volumes[size] == max(volumes.values())
            else:  # L1 alone, as fine as it can be; no group at all where nothing fits
                fit = [n for n, volume in volumes.items() if volume == 0]
                assert (size, most) == (min(fit, default=0), 0)
            assert room < blocks * block_size or (size, most) == (1, blocks) or not blocks


def test_l1_alone_is_as_fine_as_fits() -> None:
    for blocks in range(40):
        for room in range(60):
            size = l1_grouping(blocks, room)
            fit = [n for n in range(1, blocks + 1) if math.ceil(blocks / n) <= room]
            assert size == min(fit, default=0)


def test_the_flatter_the_more() -> None:
    """One-hot gives the least, uniform the most, and what is between is monotone."""
    for least, most in ((0, 0), (1, 1), (1, 3), (3, 10), (25, 100)):
        assert refill_volume(0, least, most) == least
        assert refill_volume(1, least, most) == most
        volumes = [refill_volume(step / 50, least, most) for step in range(51)]
        assert volumes == sorted(volumes)
        assert set(volumes) <= set(range(least, most + 1))
    assert [refill_volume(ratio, 2, 10) for ratio in (0.25, 0.5, 0.7, 0.99)] == [4, 6, 8, 10]  # in proportion


@pytest.mark.parametrize("count", [1, 2, 3, 50, 1000])
def test_entropy_ratio(count: int) -> None:
    one_hot = torch.zeros(3, count)
    one_hot[:, count // 2] = 1
    assert entropy_ratio(one_hot).tolist() == [0, 0, 0]
    assert float(entropy_ratio(torch.full((count,), 1 / count))) == pytest.approx(float(count > 1), abs=1e-5)
    for spread in (0.1, 1, 5, 30):
        p = torch.softmax(spread * normal(count, 4, count), dim=-1)
        found = entropy_ratio(p)
        assert ((found >= 0) & (found <= 1)).all()
        if count > 1:
            expected = -(p.double() * p.double().clamp(min=1e-300).log()).sum(dim=-1) / math.log(count)
            torch.testing.assert_close(found.double(), expected.clamp(0, 1), atol=1e-6, rtol=1e-5)
    flatter = [float(entropy_ratio(torch.softmax(normal(7, 50) * factor, dim=0))) for factor in (9, 3, 1, 0.3)]
    assert flatter == sorted(flatter)


# Groups, L1 and the budget, whatever the sizes


@pytest.mark.parametrize("option", OPTIONS)
def test_groups_partition_the_candidates_within_the_budget(option: str) -> None:
    """For many sizes: each group whole or by one token of its own, and never more tokens than there is room."""
    draw = random.Random(option)
    for _ in range(40):
        first = draw.randrange(1, 46)
        candidates = range(first, draw.randrange(first, 50))
        blocks = draw.choice([0, 1, 2, 3, draw.randrange(50), 100])
        size, most = grouping(len(candidates), blocks * BLOCK, BLOCK)
        if "l1" in option:
            size, most = l1_grouping(len(candidates), blocks * BLOCK), 0
        groups = groups_of(candidates, size)
        for chosen in selected(f"acre{option}", draw.randrange(99), blocks=blocks, candidates=candidates):
            count = len(refilled(chosen, groups))
            assert math.ceil(most / 4) <= count <= most
            assert count == most or most < len(groups)  # where all fit, nothing is left out
            assert len(chosen.blocks) * BLOCK + len(chosen.tokens) <= blocks * BLOCK


def test_l1_holds_the_last_token_of_each_group() -> None:
    for candidates in (range(1, 46), range(3, 49), range(2, 3)):
        size = l1_grouping(len(candidates), 2 * BLOCK)
        last = [(group[-1] + 1) * BLOCK - 1 for group in groups_of(candidates, size)]
        for layer, chosen in enumerate(selected("acre:l1", blocks=2, candidates=candidates)):
            assert chosen.tokens.tolist() == last
            assert chosen.states is not None
            for place, token in enumerate(last):
                assert torch.equal(chosen.states[:, :, place], make_tensors()["l1"][layer, token // BLOCK])


def test_or_its_most_attended_token() -> None:
    """Of the group's blocks that which received most, and in it the token that did."""
    methods, size = make_tensors(), l1_grouping(45, BLOCK)
    expected = []
    for group in groups_of(range(1, 46), size):
        block = max(group, key=lambda block: float(methods["l1_attended_mass"][block]))
        expected.append(int(methods["l1_attended_tokens"][block]))
    for layer, chosen in enumerate(selected("acre:l1:attended", blocks=1)):
        assert chosen.tokens.tolist() == expected
        assert chosen.states is not None
        for place, token in enumerate(expected):
            assert torch.equal(chosen.states[:, :, place], methods["l1_attended"][layer, token // BLOCK])


def test_the_documents_last_token_stands_for_its_last_block() -> None:
    """A local window of nothing makes it a candidate; the block holds 5 tokens."""
    chosen = selected("acre:l1", blocks=50, candidates=range(1, 50))[0]
    assert int(chosen.tokens[-1]) == TOKENS - 1


# Which groups


def attention(layer: int, seed: int, size: int, name: str = "l1") -> Tensor:
    """The question's own attention over L1 alone, `(H, Wq, M)`, un-rotated, in float64, a pair at a time."""
    groups, queries = groups_of(range(1, 46), size), question(seed, layer)[:, OWN].double()
    keys = torch.stack([make_tensors()[name][layer, group[-1], 0] for group in groups], dim=1).double()
    out = torch.zeros(HEADS, queries.shape[1], len(groups), dtype=torch.float64)
    for head in range(HEADS):
        for token in range(queries.shape[1]):
            scores = keys[head * KV_HEADS // HEADS] @ queries[head, token] / 4
            out[head, token] = scores.softmax(dim=0)
    return out


@pytest.mark.parametrize("options", [(), ("layer",), ("mean",), ("head-entropy",), ("mean", "head-entropy")])
@pytest.mark.parametrize("seed", [1, 50])
def test_what_the_question_looks_at_is_refilled(options: tuple[str, ...], seed: int) -> None:
    """The best groups by the last layer's attention or that which is named, as many as its entropy says."""
    size, most = grouping(45, 10 * BLOCK, BLOCK)
    groups, policy = groups_of(range(1, 46), size), acre.Policy(make_task(), *options)
    found = [refilled(chosen, groups) for chosen in run(policy, seed)[1]]
    by_layer = [attention(layer, seed, size) for layer in range(LAYERS)]
    means = torch.stack([each.mean(dim=(0, 1)) for each in by_layer])
    of_heads = torch.stack([entropy_ratio(each).mean() for each in by_layer])
    if "layer" in options:
        looked = means
    elif "mean" in options:
        looked, of_heads = means.mean(dim=0).expand(LAYERS, -1), of_heads.mean().expand(LAYERS)
    else:
        looked, of_heads = means[-1:].expand(LAYERS, -1), of_heads[-1:].expand(LAYERS)
    ratios = (of_heads if "head-entropy" in options else entropy_ratio(looked)).tolist()
    assert policy.entropy_ratio == pytest.approx(sum(ratios) / LAYERS, abs=1e-4)
    for layer in range(LAYERS):
        count = refill_volume(ratios[layer], math.ceil(most / 4), most)
        assert found[layer] == looked[layer].topk(count).indices.sort().values.tolist()


def test_single_heads_are_surer_than_their_mean() -> None:
    """Entropy is concave: so it is for any question, and here by far."""
    ratios = {}
    for options in ((), ("head-entropy",)):
        policy = acre.Policy(make_task(), *options)
        run(policy, 3)
        ratios[options] = policy.entropy_ratio
    assert ratios["head-entropy",] < ratios[()] - 0.1


@pytest.mark.parametrize("scope", ["", ":layer", ":mean"])
def test_flat_attention_refills_most_and_one_hot_least(scope: str) -> None:
    size, most = grouping(45, 20 * BLOCK, BLOCK)
    groups, least = groups_of(range(1, 46), size), math.ceil(most / 4)
    assert least < most < len(groups)
    flat, sharp = torch.zeros_like(make_tensors()["l1"]), torch.zeros_like(make_tensors()["l1"])
    wanted = groups[len(groups) // 2]
    for layer in range(LAYERS):
        for kv in range(KV_HEADS):  # a key that every one of the question's own tokens looks at
            ours = question(1, layer)[kv * 2 : kv * 2 + 2, OWN].flatten(0, 1).double()
            aim = torch.linalg.lstsq(ours, torch.ones(len(ours), 1, dtype=torch.float64)).solution[:, 0]
            assert (ours @ aim).min() > 0.2
            sharp[layer, wanted[-1], 0, kv] = 1000 * aim.float()
    for keys, count in ((flat, most), (sharp, least)):
        for chosen in selected(f"acre{scope}", blocks=20, l1=keys):
            whole = refilled(chosen, groups)
            assert len(whole) == count
            assert keys is flat or groups.index(wanted) in whole


@pytest.mark.parametrize("option", ["", ":layer", ":head-entropy"])
def test_only_the_questions_own_tokens_look(option: str) -> None:
    """The template around them may say what it will."""
    expected = selected(f"acre{option}")
    policy = make_policy(f"acre{option}", make_task())
    for step in ("scout", "question"):
        policy.begin(step)
        for layer in range(LAYERS):
            queries = question(1, layer)
            queries[:, : OWN.start], queries[:, OWN.stop :] = 100, -100
            chosen = policy.select(layer, queries)
            assert isinstance(chosen, Selection)
            assert step == "scout" or torch.equal(chosen.blocks, expected[layer].blocks)


def test_the_scouts_see_l1_alone() -> None:
    size, _ = grouping(45, 10 * BLOCK, BLOCK)
    for chosen in run(make_policy("acre", make_task()), 1)[0]:
        assert refilled(chosen, groups_of(range(1, 46), size)) == []


def test_all_layers_refill_alike_unless_each_has_its_own() -> None:
    for option in ("", ":mean", ":random", ":attended"):
        assert len({str(chosen.blocks.tolist()) for chosen in selected(f"acre{option}")}) == 1
    assert len({str(chosen.blocks.tolist()) for chosen in selected("acre:layer")}) > 1


# The ablations


@pytest.mark.parametrize("blocks", [6, 10, 30])
def test_fixed_refills_as_much_as_fits_and_random_as_much_as_it_should(blocks: int) -> None:
    size, most = grouping(45, blocks * BLOCK, BLOCK)
    groups = groups_of(range(1, 46), size)

    def whole(option: str, seed: int = 1, text: str = "Who?") -> list[int]:
        return refilled(selected(f"acre{option}", seed, blocks=blocks, text=text)[0], groups)

    assert len(whole(":fixed")) == most
    assert set(whole("")) <= set(whole(":fixed"))  # the same ranking, cut off later
    texts = [f"question {number}" for number in range(8)]
    assert {len(whole(":random", text=text)) for text in texts} == {len(whole(""))}
    assert [whole(":random", text=text) for text in texts] == [whole(":random", text=text) for text in texts]
    assert len({str(whole(":random", text=text)) for text in texts}) > 4
    if len(whole("", 50)) == len(whole("")):  # whatever the question looks at
        assert whole(":random", 50) == whole(":random")


def test_l1_refills_nothing_and_all_refills_everything() -> None:
    for chosen in selected("acre:l1", blocks=100):
        assert len(chosen.blocks) == 0
        assert chosen.tokens.tolist() == [(block + 1) * BLOCK - 1 for block in range(1, 46)]
    for chosen in selected("acre:all", blocks=1):
        assert chosen.blocks.tolist() == list(range(1, 46))
        assert len(chosen.tokens) == 0


@pytest.mark.parametrize("options", ["layer:mean", "mean:layer", "attended:mean:fixed:layer"])
def test_options_that_exclude_each_other_are_refused(options: str) -> None:
    with pytest.raises(UsageError, match="either layer or mean") as caught:
        make_policy(f"acre:{options}", make_task())
    assert caught.value.exit_code == 2


def test_nothing_and_everything_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="either l1 or all"):
        make_policy("acre:l1:all", make_task())


def test_blocks_of_one_token() -> None:
    """All of them L1: there is nothing to refill, or all is refilled already."""
    assert grouping(5, 10, 1)[0] == 1


def test_a_question_without_tokens_of_its_own() -> None:
    """As some benchmarks ask: the template alone, all of which then asks."""
    for layer, expected in zip(selected("acre", own=slice(3, 3)), selected("acre", own=slice(0, 15)), strict=True):
        assert torch.equal(layer.blocks, expected.blocks)
        assert torch.equal(layer.tokens, expected.tokens)


# In a session

BUDGET = tiny.SINK + 6 * tiny.BLOCK


def stored(folder: Path, tokens: int = 301, **how: Any) -> Path:
    how = {"budget": 1 << 20, "baselines": True, **how}
    tiny.ingest(tiny.model(), tiny.tokens(tokens), folder / "document", tiny.reading(**how), tiny.HEADS, 64)
    return folder / "document"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read at its true positions, every window attending to all before it: stock's keys and values."""
    return stored(tmp_path_factory.mktemp("library"))


@pytest.mark.parametrize("positions", ["original", "compact", "clamped"])
@pytest.mark.parametrize("tokens", [90, 301])
def test_all_refilled_is_full_attention(positions: str, tokens: int, tmp_path: Path) -> None:
    """By decree, or because there is room for everything."""
    folder = stored(tmp_path, tokens, positions=positions, budget=BUDGET)
    asked, answer = tiny.tokens(9, 10), tiny.tokens(5, 11)
    for spec, budget in (("acre:all", BUDGET), ("acre:fixed", 1 << 20), ("acre:fixed:layer:attended", 1 << 20)):
        with tiny.opened(tiny.model(), folder, budget) as session:
            ours = tiny.answer_logits(session, asked, spec, answer)
            full = tiny.answer_logits(session, asked, "full", answer)
        torch.testing.assert_close(ours, full, atol=1e-5, rtol=0)


def attended(session: Session, started: Run) -> Tensor:
    """The document's tokens that all layers attend to, from what the policy selects."""
    chosen = started.policy.select(0, torch.zeros(4, 1, 16))
    blocks, tokens = (chosen.blocks, chosen.tokens) if isinstance(chosen, Selection) else (chosen, chosen[:0])
    whole = torch.cat([torch.arange(tiny.SINK // tiny.BLOCK), blocks])
    within = (whole[:, None] * tiny.BLOCK + torch.arange(tiny.BLOCK)).flatten()
    return torch.cat([within, tokens])


@pytest.mark.parametrize("family", ["llama", "yarn", "qwen3"])
@pytest.mark.parametrize("spec", ["acre:l1", "acre", "acre:mean:attended", "acre:random", "streaming", "lexical"])
def test_the_answer_is_stocks_with_all_else_masked(family: str, spec: str, tmp_path: Path) -> None:
    """Sink, L1 and refilled groups at their true positions: transformers itself, shown no more."""
    model, ids = tiny.model(family), tiny.tokens(200 + 9 + 5)
    document, asked, answer = ids.split([200, 9, 5])
    tiny.ingest(model, document, tmp_path / "document", tiny.reading(baselines=True), tiny.HEADS, 64)
    with tiny.opened(model, tmp_path / "document", BUDGET) as session:
        started = session.start(tiny.question(asked), spec, 5)
        ours = torch.stack([started.logits, *(started.step(int(token)) for token in answer)])
        seen = attended(session, started)
    assert len(seen.unique()) == len(seen) <= BUDGET
    if spec == "acre:l1":
        size = l1_grouping(24, 6 * tiny.BLOCK)
        assert seen.tolist() == [
            *range(tiny.SINK),
            *[(group[-1] + 1) * tiny.BLOCK - 1 for group in groups_of(range(1, 25), size)],
        ]
    stock = tiny.stock_logits(model, ids, 6, 200, seen)
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=0)
    assert (ours - tiny.stock_logits(model, ids, 6)).abs().max() > 1e-2  # of a mask that does nothing we would know


@pytest.mark.parametrize("scope", ["", ":layer"])
@pytest.mark.parametrize("blocks", [5, 8])  # groups of two blocks, and of one
@pytest.mark.parametrize("place", [5, 17, 30])
def test_a_planted_key_gets_its_group_refilled(
    scope: str, blocks: int, place: int, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An L1 key parallel to what the question asks in the last layer; with `layer` that layer alone refills it."""
    asked = tiny.question(tiny.tokens(1, 11))
    queries: dict[int, Tensor] = {}
    real = acre.Policy.select

    def noting(self: Any, layer: int, query: Tensor) -> Selection:
        queries[layer] = queries.get(layer, query.clone())
        return real(self, layer, query)

    monkeypatch.setattr(acre.Policy, "select", noting)
    with tiny.opened(tiny.model(), original, tiny.SINK + blocks * tiny.BLOCK) as session:
        task = session.task(asked)
        size, most = grouping(len(task.candidates), task.block_budget * tiny.BLOCK, tiny.BLOCK)
        assert (size, most > 0) == (2 if blocks == 5 else 1, True)
        group = next(group for group in groups_of(task.candidates, size) if place in group)
        before = session.start(asked, f"acre{scope}", 0)
        assert not set(group) <= set(before.blocks_of_layers[3].tolist())
        planted = {"l1": session.resident.tensors("l1")[0].clone()}
        for kv in range(2):
            pair = queries[3][2 * kv : 2 * kv + 2, 0]
            aim = (pair / pair.norm(dim=1, keepdim=True)).sum(dim=0)
            planted["l1"][3, group[-1], 0, kv] = 100 * aim / aim.norm()
        session.resident = replace(session.resident, load=lambda names: planted)
        after = session.start(asked, f"acre{scope}", 4)
        for token in (1, 2, 3):
            assert set(group) <= set(after.blocks_of_layers[3].tolist())
            assert after.policy.entropy_ratio < before.policy.entropy_ratio  # type: ignore[attr-defined]
            assert group[0] <= int(after.ranking.argmax()) <= group[-1] or scope == ":layer"
            same = [torch.equal(after.blocks_of_layers[layer], after.blocks_of_layers[3]) for layer in range(3)]
            assert all(same) == (scope == "")
            after.step(token)


def test_the_budget_holds_for_every_layer_and_step(original: Path) -> None:
    """Sink, L1 and refilled blocks together, by the tokens that are really attended."""
    asked = tiny.question(tiny.tokens(9, 10))
    with tiny.opened(tiny.model(), original) as session:
        for budget in (tiny.SINK, 9, 15, 23, BUDGET, BUDGET + 5, 150, 300, 400):
            for option in OPTIONS:
                started = session.start(asked, f"acre{option}", 2, budget)
                for token in (1, 2):
                    assert max(started.attended_tokens) <= budget
                    started.step(token)
