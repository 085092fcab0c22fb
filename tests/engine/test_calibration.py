"""Retrieval heads are found from facts that are really where the measure looks for them."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from actqkv_cli.engine import calibration
from actqkv_cli.engine.calibration import READING, calibrate
from actqkv_cli.engine.planted import FACTS, planted_document
from actqkv_cli.model.heads import Calibration
from actqkv_cli.model.prompt import encode_document, encode_question
from actqkv_cli.model.tokenizer import Tokenizer
from actqkv_cli.retrieval.policies import heads
from actqkv_cli.store.manifest import Geometry

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTIONS = [question for _, question in FACTS]
GEOMETRY = Geometry(layers=4, kv_heads=2, head_dim=16, block_size=32, segment_tokens=1024, dtype="float32")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny.tokenizer(
        [planted_document()[0], *QUESTIONS], CHAT, ["<|im_start|>", "<|im_end|>"], size=tiny.VOCABULARY
    )


def found(tokenizer: Tokenizer, cache: Path) -> Calibration:
    return calibrate(tiny.model(), tokenizer, GEOMETRY, cache)


def test_finds_the_same_heads_every_time(tokenizer: Tokenizer, tmp_path: Path) -> None:
    first = found(tokenizer, tmp_path)
    assert found(tokenizer, tmp_path) == first
    assert [path.name for path in tmp_path.iterdir()] == [".locks"]
    assert len({(head.layer, head.head) for head in first.heads}) == 6
    for head in first.heads:
        assert 0 <= head.layer < 4
        assert 0 <= head.head < 4
        assert 0 <= head.score <= 1
    assert Calibration.model_validate_json(first.model_dump_json()) == first


def test_a_head_that_finds_every_fact_comes_first(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two heads are made to see: one finds all facts, one every other; where, the text itself tells."""
    text, _ = planted_document()
    encoded = encode_document(tokenizer, [(1, 0, text)])
    calls: list[torch.Size] = []

    def seeing(queries: Tensor, keys: Tensor, task: Any) -> Tensor:
        number, layer = divmod(len(calls), 4)
        calls.append(queries.shape)
        mass = torch.rand(4, -(-len(encoded.ids) // 32), generator=torch.Generator().manual_seed(len(calls)))
        begin = text.index(FACTS[number][0]) + 20  # in the middle of the fact
        token = int((encoded.char_start[encoded.start :] <= begin).sum()) - 1 + encoded.start
        if layer == 2:
            mass[1, token // 32] = 2
        if layer == 0 and number % 2:
            mass[3, token // 32] = 2
        elif layer == 0:
            mass[3, token // 32] = 0.5
        return mass / mass.sum(dim=1, keepdim=True)

    monkeypatch.setattr(calibration, "question_mass", seeing)
    best, second = found(tokenizer, tmp_path).heads[:2]
    assert (best.layer, best.head, best.score) == (2, 1, 1.0)
    assert (second.layer, second.head) == (0, 3)
    assert second.score == pytest.approx(0.5, abs=0.02)
    assert len(calls) == 4 * len(FACTS)


def test_to_look_at_a_fact_hard_is_not_to_find_it(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One looks at the fact hard, and at another block harder; one hardly looks, but nowhere else."""
    text, places = planted_document()
    encoded = encode_document(tokenizer, [(1, 0, text)])
    calls: list[int] = []

    def seeing(queries: Tensor, keys: Tensor, task: Any) -> Tensor:
        number, layer = divmod(len(calls), 4)
        calls.append(layer)
        mass = torch.full((4, -(-len(encoded.ids) // 32)), 1e-4)
        target = calibration._blocks_at(encoded.char_start, encoded.start, places[number], 32)
        if layer == 1:
            mass[0, target], mass[0, 3] = 0.5, 0.6
            mass[2, target] = 0.05
        return mass

    monkeypatch.setattr(calibration, "question_mass", seeing)
    first, second = found(tokenizer, tmp_path).heads[:2]
    assert [(head.layer, head.head) for head in (first, second)] == [(1, 2), (1, 0)]
    assert (first.score, second.score) == (1, 0.5)


def test_heads_are_scored_on_the_questions_own_tokens(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lengths = []

    def noting(queries: Tensor, keys: Tensor, task: Any) -> Tensor:
        lengths.append(queries.shape[1])
        return torch.rand(4, 500, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(calibration, "question_mass", noting)
    found(tokenizer, tmp_path)
    own = [encode_question(tokenizer, question).own for question in QUESTIONS]
    assert lengths[::4] == [part.stop - part.start for part in own]


def test_every_fact_stands_where_places_say_and_can_be_retrieved(tokenizer: Tokenizer) -> None:
    text, places = planted_document()
    assert planted_document() == (text, places)
    encoded = encode_document(tokenizer, [(1, 0, text)])
    for (fact, question), (begin, end) in zip(FACTS, places, strict=True):
        assert text[begin:end] == fact
        assert text.count(fact) == 1
        assert question not in text
        following = torch.cat([encoded.char_start[1:], torch.tensor([len(text)])])
        inside = ((following > begin) & (encoded.char_start < end)).nonzero().flatten()
        inside = inside[inside >= encoded.start]
        assert int(inside[0]) >= READING.sink + 32
        assert int(inside[-1]) < len(encoded.ids) - READING.local - 32
        assert tokenizer.decode(encoded.ids[inside].tolist()).strip() == fact
    assert places == sorted(places)


def test_another_seed_is_another_document() -> None:
    assert planted_document(1)[0] != planted_document(0)[0]


class _Scout(heads.Policy):
    """Keeps what the scout pass found."""

    def score(self, by_heads: Tensor) -> Tensor:
        self.found = by_heads
        return by_heads


def test_heads_are_chosen_by_what_the_scout_pass_will_see(tmp_path: Path) -> None:
    """What calibration notes of a head is what the head sees when a question is asked: with other keys in sight the
    queries of higher layers are others."""
    tiny.ingest(tiny.model(), tiny.tokens(300), tmp_path / "document", tiny.reading(), tiny.HEADS)
    asked = tiny.question(tiny.tokens(9, 7))
    with tiny.opened(tiny.model(), tmp_path / "document", tiny.SINK + 4 * tiny.BLOCK) as session:
        task, reader = session.task(asked), session.context.documents[0].reader
        keys = [calibration._keys(reader, layer, task.tokens) for layer in range(4)]
        observer, scout = calibration._Observer(task, keys), _Scout(task)
        for policy in (observer, scout):
            session.run([(policy, asked)], max_tokens=0)[0].close()
    mass = torch.stack([observer.mass[head.layer][head.head].sqrt() for head in tiny.HEADS]).sum(dim=0)
    assert max(head.layer for head in tiny.HEADS) > 0
    torch.testing.assert_close(scout.found, heads.with_neighbours(mass, task.ranked_blocks))
