"""What only some methods need of a document: each tensor against stock transformers, or a plain computation."""

import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from actqkv_cli.engine.blocks import tokens_at
from actqkv_cli.engine.methods import snapkv_scores
from actqkv_cli.store.manifest import load_unfinished
from actqkv_cli.store.writer import DocumentWriter

TOKENS = 299  # 37 blocks and 3 tokens: fewer than there are anchors
BASELINES = {"bounds", "anchors", "h2o", "snapkv", "l1_attended", "l1_attended_tokens", "l1_attended_mass"}


def read(folder: Path, tokens: int = TOKENS, family: str = "llama", segment: int = 64, **how: Any) -> Path:
    how = {"baselines": True, **how}
    tiny.ingest(tiny.model(family), tiny.tokens(tokens), folder / "document", tiny.reading(**how), (), segment)
    return folder / "document"


def real(block: int, tokens: int = TOKENS) -> int:
    """How many tokens a block holds."""
    return min(tiny.BLOCK, tokens - block * tiny.BLOCK)


def test_without_baselines_there_is_l1_alone(tmp_path: Path) -> None:
    """And it is the same as with them."""
    _, _, with_them = tiny.stored(read(tmp_path / "with"))
    _, _, without = tiny.stored(read(tmp_path / "without", baselines=False))
    assert without.keys() == {"l1"}
    assert with_them.keys() == {"l1"} | BASELINES
    assert torch.equal(with_them["l1"], without["l1"])


@pytest.mark.parametrize("tokens", [1, 8, TOKENS])
@pytest.mark.parametrize(("window", "segment"), [(8, 64), (64, 64), (512, 512)])
def test_l1_and_bounds_are_of_the_stored_rows(tokens: int, window: int, segment: int, tmp_path: Path) -> None:
    """The very keys and values of each block's last token, and of its keys the least and greatest, padding left out."""
    blocks, _, methods = tiny.stored(read(tmp_path, tokens, window=window, segment=segment))
    for block in range(blocks.shape[1]):
        rows = blocks[:, block, :, :, : real(block, tokens)]
        assert torch.equal(methods["l1"][:, block], rows[:, :, :, -1])
        assert torch.equal(methods["bounds"][:, block, 0], rows[:, 0].amin(dim=2))
        assert torch.equal(methods["bounds"][:, block, 1], rows[:, 0].amax(dim=2))
    assert methods["l1"].shape == methods["bounds"].shape == (4, blocks.shape[1], 2, 2, 16)


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral-sliding"])
@pytest.mark.parametrize(("window", "segment"), [(512, 512), (32, 64)])
def test_what_was_attended_is_what_stock_attends_to(family: str, window: int, segment: int, tmp_path: Path) -> None:
    """At true positions, all attended: H2O's scores are the column sums of attention; anchors and attended tokens
    follow from them. It makes no difference in how many windows a document is read."""
    blocks, _, methods = tiny.stored(read(tmp_path, window=window, segment=segment, family=family))
    received = tiny.stock(tiny.model(family), tiny.tokens(TOKENS)).attention.sum(dim=(1, 2))  # (L, T)
    for block in range(blocks.shape[1]):
        begin, count = block * tiny.BLOCK, real(block)
        here = received[:, begin : begin + count]
        torch.testing.assert_close(methods["h2o"][:, block], here.sum(dim=1), atol=1e-3, rtol=1e-4)
        for layer in range(4):
            best = here[layer].topk(min(4, count)).indices
            mean = blocks[layer, block, 0, :, best].mean(dim=1)
            torch.testing.assert_close(methods["anchors"][layer, block, 0], mean)
        most, place = here.sum(dim=0).max(dim=0)
        assert int(methods["l1_attended_tokens"][block]) == begin + int(place)
        assert float(methods["l1_attended_mass"][block]) == pytest.approx(float(most), rel=1e-4)
        assert torch.equal(methods["l1_attended"][:, block], blocks[:, block, :, :, place])


@pytest.mark.parametrize("positions", ["clamped", "compact", "original"])
@pytest.mark.parametrize("prefill", ["windowed", "full"])
@pytest.mark.parametrize("representative", ["mean", "anchor"])
def test_every_query_gives_its_whole_attention(
    positions: str, prefill: str, representative: str, tmp_path: Path
) -> None:
    """Once for each head, however little it attends to: nothing is counted twice or lost."""
    budget = tiny.SINK + tiny.LOCAL + 3 * tiny.BLOCK
    folder = read(tmp_path, positions=positions, prefill=prefill, representative=representative, budget=budget)
    _, _, methods = tiny.stored(folder)
    assert (methods["h2o"] > 0).all()
    torch.testing.assert_close(methods["h2o"].sum(dim=1), torch.full((4,), 4.0 * TOKENS), atol=0.05, rtol=0)


def expected_votes(queries: Tensor, keys: Tensor, sink: int, block: int) -> Tensor:
    """SnapKV's scores as they are defined, a number at a time, in float64."""
    (heads, window, dim), (kv_heads, tokens) = queries.shape, keys.shape[:2]
    votes = torch.zeros(kv_heads, tokens, dtype=torch.float64)
    for head in range(heads):
        kv = head * kv_heads // heads
        for row in range(window):
            logits = [float(queries[head, row].double() @ keys[kv, t].double()) / dim**0.5 for t in range(sink, tokens)]
            largest = max(logits)
            total = sum(math.exp(x - largest) for x in logits)
            for token, x in enumerate(logits, sink):
                votes[kv, token] += math.exp(x - largest) / total / (heads // kv_heads)
    out = torch.zeros(-(-tokens // block), dtype=torch.float64)
    for token in range(sink, tokens):
        near = votes[:, max(sink, token - 3) : token + 4].max(dim=1).values  # 7 tokens
        out[token // block] += near.mean()
    return out


@pytest.mark.parametrize(("heads", "kv_heads", "window"), [(4, 2, 5), (3, 3, 1), (6, 1, 9)])
@pytest.mark.parametrize(("tokens", "sink"), [(61, 8), (16, 8), (9, 8), (23, 0)])
def test_snapkv_scores_are_the_pooled_votes(heads: int, kv_heads: int, window: int, tokens: int, sink: int) -> None:
    draw = torch.Generator().manual_seed(heads)
    queries = 2 * torch.randn(heads, window, 16, generator=draw)
    keys = torch.randn(kv_heads, tokens, 16, generator=draw)
    found = snapkv_scores(queries, keys, sink, 8)
    assert found.dtype == torch.float32
    expected = expected_votes(queries, keys, sink, 8)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", [1, 5, 8])
def test_within_the_sink_nobody_votes(tokens: int) -> None:
    assert not snapkv_scores(torch.ones(4, 3, 16), torch.ones(2, tokens, 16), 8, 8).any()


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("tokens", [20, 41, TOKENS])
@pytest.mark.parametrize("window", [8, 64])
def test_the_documents_last_32_tokens_vote(family: str, tokens: int, window: int, tmp_path: Path) -> None:
    """All of them, in how many windows they may stand, by queries and keys before rotation; fewer if there are."""
    _, _, methods = tiny.stored(read(tmp_path, tokens, family, window=window))
    stock = tiny.stock(tiny.model(family), tiny.tokens(tokens))
    for layer in range(4):
        expected = snapkv_scores(stock.queries[layer, :, -32:], stock.states[layer, 0], tiny.SINK, tiny.BLOCK)
        torch.testing.assert_close(methods["snapkv"][layer], expected, atol=1e-3, rtol=1e-3)


def test_tokens_at_their_places() -> None:
    blocks = torch.arange(3 * 5 * 2 * 2 * 4 * 1.0).view(3, 5, 2, 2, 4, 1)  # two dimensions in front
    places = torch.tensor([3, 0, 2, 2, 1])
    found = tokens_at(blocks, places)
    assert found.shape == (3, 5, 2, 2, 1)
    for block, place in enumerate(places.tolist()):
        assert torch.equal(found[:, block], blocks[:, block, :, :, place])
        assert torch.equal(tokens_at(blocks[1], places)[block], blocks[1, block, :, :, place])


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("representative", ["mean", "anchor"])
def test_with_baselines_an_interrupted_reading_starts_over(representative: str, tmp_path: Path) -> None:
    """It says so, and ends in the same files, byte for byte."""
    model, ids = tiny.model(), tiny.tokens(205)
    budget = tiny.SINK + tiny.LOCAL + 3 * tiny.BLOCK
    how = tiny.reading(baselines=True, positions="clamped", representative=representative, budget=budget)
    tiny.ingest(model, ids, tmp_path / "undisturbed" / "document", how, tiny.HEADS, 64)
    for stop_at in (96, 160, 205):
        folder = tmp_path / str(stop_at) / "document"
        seen: list[int] = []

        def stop(position: int, stop_at: int = stop_at) -> None:
            if position == stop_at:
                raise Interrupted

        with pytest.raises(Interrupted):
            tiny.ingest(model, ids, folder, how, tiny.HEADS, 64, stop)
        assert load_unfinished(folder).tokens_done > 0
        with DocumentWriter.open(folder, tiny.draft(model, ids, "document", how, tiny.HEADS, 64)) as writer:
            assert writer.segments == ()
            assert [warning.split(":")[0] for warning in writer.warnings] == ["starting over"]
        tiny.ingest(model, ids, folder, how, tiny.HEADS, 64, seen.append)
        assert seen[0] == 0
        for path in (tmp_path / "undisturbed" / "document").iterdir():
            assert (folder / path.name).read_bytes() == path.read_bytes(), (stop_at, path.name)


def test_a_resumed_reading_has_the_l1_of_an_undisturbed_one(tmp_path: Path) -> None:
    """Of the segments that were read before, of those in memory, and of the short last block."""
    model, ids, how = tiny.model(), tiny.tokens(TOKENS), tiny.reading()
    tiny.ingest(model, ids, tmp_path / "undisturbed" / "document", how, (), 64)
    folder = tmp_path / "stopped" / "document"

    def stop(position: int) -> None:
        if position == 224:
            raise Interrupted

    with pytest.raises(Interrupted):
        tiny.ingest(model, ids, folder, how, (), 64, stop)
    seen: list[int] = []
    tiny.ingest(model, ids, folder, how, (), 64, seen.append)
    assert seen[0] == 192
    l1 = [tiny.stored(tmp_path / name / "document")[2]["l1"] for name in ("undisturbed", "stopped")]
    assert torch.equal(*l1)
