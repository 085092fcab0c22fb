"""Where the attended keys stand: one layer against a dense computation that knows only distances."""

import sys

import pytest
import tiny
import torch
from torch import Tensor

from actqkv_cli.engine.blocks import BlockPool
from actqkv_cli.engine.layer import Layer, Positions
from actqkv_cli.engine.layout import Layout
from actqkv_cli.model.causal_lm import AttentionCall
from actqkv_cli.model.rotary import Rotary
from actqkv_cli.model.stock import stock_model
from actqkv_cli.retrieval.policy import Selection
from actqkv_kernels import Workspace
from actqkv_kernels.paged_attention import rotated as turn

HEADS, KV_HEADS, DIM = 4, 2, 16
POSITION = 157  # of the first query: within a block


class Document:
    """Un-rotated keys and values of a document, handed out by the block."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(3)
        self.tokens = torch.randn(2, KV_HEADS, 200, DIM, generator=draw)

    def blocks(self, layer: int, ids: Tensor) -> Tensor:
        return self.tokens.unflatten(2, (-1, tiny.BLOCK))[:, :, ids].permute(2, 0, 1, 3, 4)


def rotated(family: str, x: Tensor, positions: Tensor) -> Tensor:
    """x `(heads, T, d)` turned by the model's own module and function."""
    decoder = stock_model(tiny.model(family)).model
    apply = sys.modules[type(decoder.layers[0].self_attn).__module__].apply_rotary_pos_emb
    cos, sin = decoder.rotary_emb(x, positions[None])
    result: Tensor = apply(x[None], x[None], cos, sin)[0][0]
    return result


def dense(
    family: str, query: Tensor, states: Tensor, distance: Tensor, seen: Tensor, rotates: bool
) -> tuple[Tensor, Tensor]:
    """Attention of `(H, W, d)` queries to `(2, Hkv, M, d)` states, each pair at a distance `(W, M)` of its own; and
    how much of it each key received, `(M,)`."""
    keys, values = states.repeat_interleave(HEADS // KV_HEADS, dim=1)
    if rotates:
        keys = rotated(family, keys, torch.zeros(keys.shape[1], dtype=torch.int64))
    rows, received = [], torch.zeros(keys.shape[1], dtype=torch.float64)
    for token in range(query.shape[1]):
        own = query[:, token : token + 1].expand(-1, keys.shape[1], -1)
        own = rotated(family, own, distance[token].clamp(min=0)) if rotates else own
        scores = (own * keys).sum(dim=-1).double() * DIM**-0.5
        p = scores.masked_fill(~seen[token], float("-inf")).softmax(dim=-1)
        rows.append((p[..., None] * values.double()).sum(dim=1))
        received += p.sum(dim=0)
    return torch.stack(rows, dim=1).float(), received.float()


@pytest.mark.parametrize("family", ["llama", "yarn"])
@pytest.mark.parametrize("positions", ["original", "compact", "clamped"])
@pytest.mark.parametrize("sliding", [None, 20, 34, 40])
@pytest.mark.parametrize(
    ("chosen", "loose"),
    [([], []), ([2, 3, 7], []), ([1, 9, 10, 14], [23, 47, 95]), ([], [8, 40, 41, 127])],
    ids=["nothing", "blocks", "blocks and tokens", "tokens"],
)
@pytest.mark.parametrize("rotates", [True, False])
@pytest.mark.parametrize("given", [True, False], ids=["given", "read"])
def test_every_pair_stands_at_its_distance(
    family: str,
    positions: Positions,
    sliding: int | None,
    chosen: list[int],
    loose: list[int],
    rotates: bool,
    given: bool,
) -> None:
    """given: whether tokens come with their states, or are read from their blocks."""
    document = Document()
    layout = Layout(tiny.BLOCK, tiny.SINK, tiny.LOCAL, 1 << 20)
    draw = torch.Generator().manual_seed(4)
    rotary = Rotary(tiny.model(family))

    def select(layer: int, queries: Tensor) -> Tensor | Selection:
        ids, tokens = torch.tensor(chosen).long(), torch.tensor(beside).long()
        return Selection(ids, tokens, document.tokens[:, :, tokens] if given else None) if loose else ids

    pool = BlockPool(document.blocks, 1, 25, torch.device("cpu"))
    layer = Layer(0, pool, select, rotary, layout, positions, Workspace())
    layer.return_mass = True
    layer.begin(POSITION, 2)  # less room than is needed
    near_first = layout.near_start(POSITION) * tiny.BLOCK
    fed = document.tokens[:, :, :0]
    for window, beside in zip((9, 1, 1), (loose, loose, loose[1:]), strict=True):  # the blocks stay, a token goes
        query = torch.randn(HEADS, window, DIM, generator=draw)
        key, value = torch.randn(2, KV_HEADS, window, DIM, generator=draw)
        fed = torch.cat([fed, torch.stack([key, value])], dim=2)
        ours = layer.attend(query, key, value, AttentionCall(DIM**-0.5, rotates, sliding))

        blocks = [torch.arange(i * tiny.BLOCK, (i + 1) * tiny.BLOCK) for i in [0, *chosen]]
        far = torch.cat([*blocks, torch.tensor(beside).long()]).sort().values
        near = torch.arange(near_first, POSITION + fed.shape[2])
        states = torch.cat([document.tokens[:, :, far], document.tokens[:, :, near_first:POSITION], fed], dim=2)
        true = torch.cat([far, near])
        place = torch.arange(len(true)) if positions == "compact" else true
        distance = place[-window:, None] - place
        if positions == "clamped":
            distance[:, : len(far)] = tiny.LOCAL
        seen = (true[-window:, None] >= true) & (distance < (sliding or 1 << 30))
        expected, received = dense(family, query, states, distance, seen, rotates)
        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-4)
        mass = torch.zeros(POSITION)
        mass[true[true < POSITION]] = received[true < POSITION]
        torch.testing.assert_close(layer.document_mass(POSITION), mass, atol=1e-4, rtol=1e-4)
        assert layer.far_tokens == len(far)


def test_rotation_depends_on_the_distance_alone() -> None:
    """What the dense computation above takes for granted."""
    rotary = Rotary(tiny.model("yarn"))
    q, k = torch.randn(2, 1, 1, DIM, generator=torch.Generator().manual_seed(0))
    tables = rotary.halves(1600)
    products = [
        (turn(q, torch.tensor([s + 7]), tables) * turn(k, torch.tensor([s]), tables)).sum() for s in (0, 50, 1500)
    ]
    torch.testing.assert_close(products[1:], [products[0]] * 2, atol=1e-3, rtol=1e-3)
