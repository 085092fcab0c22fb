"""Reading a document: what is stored, in how much memory, and that an interruption leaves no trace."""

import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from actqkv_cli.engine.layout import Layout
from actqkv_cli.store.manifest import RetrievalHead, load_unfinished
from actqkv_cli.store.reader import DocumentReader
from actqkv_cli.store.writer import DocumentWriter

TOKENS = 299  # 37 blocks and 3 tokens: fewer than there are anchors


def as_blocks(states: Tensor) -> Tensor:
    """`(L, 2, Hkv, T, d)` -> `(L, N, 2, Hkv, b, d)`, zeros behind the last token."""
    padded = torch.nn.functional.pad(states, (0, 0, 0, -states.shape[3] % tiny.BLOCK))
    return padded.unflatten(3, (-1, tiny.BLOCK)).permute(0, 3, 1, 2, 4, 5)


@pytest.mark.parametrize("family", ["llama", "qwen3", "smollm3"])
@pytest.mark.parametrize(
    ("window", "segment", "prefill"),
    [(32, 32, "windowed"), (8, 64, "windowed"), (64, 64, "full"), (512, 512, "windowed")],
)
def test_stores_keys_before_rotation_and_values(
    family: str, window: int, segment: int, prefill: str, tmp_path: Path
) -> None:
    model, ids = tiny.model(family), tiny.tokens(TOKENS)
    how = tiny.reading(window=window, prefill=prefill)
    tiny.ingest(model, ids, tmp_path / "document", how, segment_tokens=segment)
    blocks, representatives, _ = tiny.stored(tmp_path / "document")
    torch.testing.assert_close(blocks, as_blocks(tiny.stock(model, ids).states), atol=1e-4, rtol=1e-4)
    assert (blocks[:, -1, :, :, TOKENS % tiny.BLOCK :] == 0).all()
    for block in range(blocks.shape[1]):
        real = min(tiny.BLOCK, TOKENS - block * tiny.BLOCK)
        torch.testing.assert_close(representatives[:, block, 0], blocks[:, block, 0, :, :real].mean(dim=2))


@pytest.mark.parametrize(("window", "segment"), [(16, 32), (16, 128), (64, 64), (64, 128)])
def test_anchors_are_the_keys_that_received_most_local_attention(window: int, segment: int, tmp_path: Path) -> None:
    """Attention from every query of every window that still had the key in its local window, from stock itself."""
    model, ids = tiny.model(), tiny.tokens(TOKENS)
    how = tiny.reading(window=window, representative="anchor")
    tiny.ingest(model, ids, tmp_path / "document", how, segment_tokens=segment)
    blocks, representatives, _ = tiny.stored(tmp_path / "document")
    attention = tiny.stock(model, ids).attention
    layout = Layout(tiny.BLOCK, tiny.SINK, tiny.LOCAL, 1 << 20)
    mass = torch.zeros(4, 2, TOKENS)
    for position in range(0, TOKENS, window):
        near = layout.near_start(position) * tiny.BLOCK
        received = attention[:, :, position : position + window, near:].sum(dim=2)
        mass[:, :, near:] += received.unflatten(1, (2, -1)).sum(dim=2)
    for block in range(blocks.shape[1]):
        received = mass[..., block * tiny.BLOCK : (block + 1) * tiny.BLOCK]
        best = received.topk(min(4, received.shape[-1]), dim=-1).indices  # (L, Hkv, 4)
        keys = blocks[:, block, 0].gather(2, best[..., None].expand(-1, -1, -1, 16))
        torch.testing.assert_close(representatives[:, block, 0], keys.mean(dim=2))


@pytest.mark.parametrize("segment", [32, 512])
def test_keeps_the_keys_of_the_retrieval_heads(segment: int, tmp_path: Path) -> None:
    """A row for each kv head that a retrieval head looks at, by layer and head; two heads of a group share one."""
    heads = [RetrievalHead(layer=layer, head=head, score=1) for layer, head in ((3, 2), (1, 1), (1, 3), (3, 3))]
    ids = tiny.tokens(TOKENS)
    tiny.ingest(tiny.model(), ids, tmp_path / "document", tiny.reading(), heads, segment)
    blocks, _, _ = tiny.stored(tmp_path / "document")
    with DocumentReader(tmp_path / "document") as reader:
        found = reader.tensors(["head_keys"])["head_keys"]
    expected = [blocks[layer, :, 0, head].flatten(0, 1)[:TOKENS] for layer, head in ((1, 0), (1, 1), (3, 1))]
    assert torch.equal(found, torch.stack(expected))


@pytest.mark.parametrize(("window", "segment", "local"), [(32, 32, 32), (8, 32, 64), (64, 64, 8), (16, 128, 32)])
def test_memory_holds_two_segments_a_local_window_and_a_window(
    window: int, segment: int, local: int, tmp_path: Path
) -> None:
    how = tiny.reading(window=window, local=local)
    positions = []

    def progress(position: int) -> None:
        positions.append(position)
        folder = tmp_path / "document"
        on_disk = sum(part.blocks for part in load_unfinished(folder).segments) * tiny.BLOCK
        assert position - on_disk < 2 * segment + local + window  # one of them is being written

    tiny.ingest(tiny.model(), tiny.tokens(TOKENS), tmp_path / "document", how, (), segment, progress)
    assert positions == [*range(0, TOKENS, window), TOKENS]


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("representative", ["mean", "anchor"])
@pytest.mark.parametrize("prefill", ["windowed", "full"])
@pytest.mark.parametrize("positions", ["clamped", "original"])
def test_an_interruption_leaves_no_trace(representative: str, prefill: str, positions: str, tmp_path: Path) -> None:
    """Interrupted after each of its windows, a reading ends in the same files, byte for byte."""
    how = tiny.reading(
        representative=representative,
        prefill=prefill,
        positions=positions,
        budget=tiny.SINK + tiny.LOCAL + 3 * tiny.BLOCK,
    )
    model, ids = tiny.model(), tiny.tokens(205)

    def read(home: str, stop_at: int) -> Path:
        def progress(position: int) -> None:
            if position == stop_at:
                raise Interrupted

        folder = tmp_path / home / "document"
        tiny.ingest(model, ids, folder, how, tiny.HEADS, 64, progress)
        return folder

    undisturbed = read("undisturbed", -1)
    assert (undisturbed / "methods.safetensors").exists()
    resumed_at = set()
    for stop_at in (*range(0, len(ids), how.window), len(ids)):
        with pytest.raises(Interrupted):
            read(f"stopped-at-{stop_at}", stop_at)
        resumed_at.add(load_unfinished(tmp_path / f"stopped-at-{stop_at}" / "document").tokens_done)
        folder = read(f"stopped-at-{stop_at}", -1)
        assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in undisturbed.iterdir())
        for path in undisturbed.iterdir():
            assert (folder / path.name).read_bytes() == path.read_bytes(), (stop_at, path.name)
    assert {0, 64, 128, len(ids)} <= resumed_at


def test_interrupted_over_and_over(tmp_path: Path) -> None:
    """Each run gets only as far as its first new segment."""
    model, ids, how = tiny.model(), tiny.tokens(205), tiny.reading(representative="anchor")
    tiny.ingest(model, ids, tmp_path / "undisturbed" / "document", how)
    folder, runs = tmp_path / "disturbed" / "document", 0
    done = -1

    def progress(position: int) -> None:
        while (segments := len(load_unfinished(folder).segments)) < position // 32 - 1:  # its local window's is not due
            time.sleep(0.001)  # another thread writes it
        if segments > done >= 0:
            raise Interrupted

    while not (folder / "manifest.json").exists():
        with DocumentWriter.open(folder, tiny.draft(model, ids, "document", how)) as writer:
            done = len(writer.segments)
        try:
            tiny.ingest(model, ids, folder, how, progress=progress)
        except Interrupted:
            runs += 1
    assert runs == 6
    for path in (tmp_path / "undisturbed" / "document").iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("score", ["dot", "cosine"])
@pytest.mark.parametrize("representative", ["mean", "anchor"])
def test_windowed_prefill_retrieves_what_it_should(
    score: str, representative: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every window and layer: the candidates with the best score for the window's probe-query, no others."""
    from actqkv_cli.engine.layer import Layer
    from actqkv_kernels import activation_probe, block_scores

    budget = tiny.SINK + tiny.LOCAL + 3 * tiny.BLOCK
    how = tiny.reading(score=score, representative=representative, budget=budget, positions="clamped")
    calls: list[tuple[Tensor, Tensor]] = []
    real = Layer.attend

    def noting(self: Layer, query: Tensor, *rest: Any) -> Tensor:
        out = real(self, query, *rest)
        calls.append((query.clone(), self.chosen_blocks))
        return out

    monkeypatch.setattr(Layer, "attend", noting)
    tiny.ingest(tiny.model(), tiny.tokens(205), tmp_path / "document", how)
    _, representatives, _ = tiny.stored(tmp_path / "document")
    layout = Layout(tiny.BLOCK, tiny.SINK, tiny.LOCAL, budget)
    for number, (query, chosen) in enumerate(calls):
        window, layer = divmod(number, 4)
        candidates = layout.candidates(window * 32)
        known = representatives[layer, candidates.start : candidates.stop]
        scores = block_scores(activation_probe(query), known, score)  # type: ignore[arg-type]
        best = sorted(candidates, key=lambda block: -float(scores[block - candidates.start]))[:3]
        assert chosen.tolist() == sorted(best)
    assert len(calls) == 7 * 4


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files by /proc")
def test_no_segment_stays_open(tmp_path: Path) -> None:
    model = tiny.model()
    before = len(list(Path("/proc/self/fd").iterdir()))
    tiny.ingest(model, tiny.tokens(301), tmp_path / "document", tiny.reading(window=32), segment_tokens=32)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
