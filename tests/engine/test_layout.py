"""Sink, candidates and local window: disjoint, within the budget, at every position of a document."""

import pytest

from actqkv_cli.engine.layout import Layout


@pytest.mark.parametrize(("sink", "local", "budget"), [(8, 32, 80), (0, 0, 0), (16, 8, 31), (0, 64, 64), (8, 0, 40)])
@pytest.mark.parametrize("size", [1, 4, 8])
def test_every_position(sink: int, local: int, budget: int, size: int) -> None:
    layout = Layout(size, sink, local, budget)
    for position in range(300):
        near, sinks, candidates = layout.near_start(position), layout.sink_blocks(position), layout.candidates(position)
        assert position - local <= near * size <= max(0, position - local + size - 1)
        assert (candidates.start, candidates.stop) == (sinks, near)
        assert sinks * size == min(sink, near * size)
        retrieved = min(layout.retrieved_blocks, len(candidates)) * size
        assert sinks * size + retrieved + position - near * size <= max(budget, sink + local)


@pytest.mark.parametrize(("sink", "local"), [(7, 32), (8, 30)])
def test_parts_of_blocks_are_refused(sink: int, local: int) -> None:
    with pytest.raises(ValueError, match="multiples"):
        Layout(8, sink, local, 100)
