"""A decoding step of fixed shapes: recorded once as a CUDA graph, and played for every token without launch overhead.

What changes from token to token lies in tensors that the recorded step reads. Where a policy selects anew, the
selection stays on the device as well; if a block of it was missing, it is fetched, and the step is played again.
"""

import functools
import warnings
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from actqkv_cli.engine.paged_layer import Moment, PagedLayer
from actqkv_cli.errors import StoreDamaged, first_line
from actqkv_cli.retrieval.policy import PerToken
from actqkv_kernels.backend import SlowerPath

if TYPE_CHECKING:
    from actqkv_cli.engine.session import Run, Session


class RecordedStep:
    """The next tokens of one run, for as long as `fits` says so."""

    def __init__(self, session: "Session", run: "Run") -> None:
        """For a run that is `recordable`."""
        self._policy = run.policy
        self._layers = _paged_layers(run)
        device = session.model.device
        self._ids = torch.zeros((1, 1), dtype=torch.int64, device=device)
        offset = torch.zeros((), dtype=torch.int32, device=device)
        positions = torch.stack([layer.next_positions() for layer in self._layers])  # (L, 2, 1)
        most = run.policy.most() if isinstance(run.policy, PerToken) else 0
        chosen = torch.full((len(self._layers), most), -1, dtype=torch.int32, device=device)
        for number, layer in enumerate(self._layers):
            layer.record(Moment(offset, positions[number], chosen[number]), run.policy)
        self._offset, self._positions, self._chosen = offset, positions, chosen
        self._fed = self._layers[0].fed_count
        self._pace = self._layers[0].pace
        self._kept = [layer.reads() for layer in self._layers]  # for a graph does not keep what it reads
        # Neither may keep the other alive: what a run holds has to go as soon as it does.
        self._compute = functools.partial(_logits, session, weakref.proxy(run), self._ids)
        self._graphs: dict[bool, Callable[[], Tensor]] = {}

    def fits(self) -> bool:
        """Whether there is room for a token, and all is as the last step left it."""
        return self._layers[0].fed_count == self._fed and all(
            layer.has_room and layer.is_where(reads) for layer, reads in zip(self._layers, self._kept, strict=True)
        )

    def step(self, token: int) -> Tensor | None:
        """Logits `(V,)` fp32 after a token, for which the policy has begun its step. None: it has to be fed without a
        recorded step, for blocks went missing as fast as they came."""
        policy = self._policy
        selects = isinstance(policy, PerToken) and policy.selects
        self._ids.fill_(token)
        self._offset.fill_(self._fed)
        for layer in self._layers:
            layer.recording = True
            layer.selects = selects
        try:
            if selects not in self._graphs:
                self._graphs[selects] = _recorded(self._compute, self._ids.device)
            # Layers below the first miss were right, so that each time at least one more of them is.
            for _ in range(len(self._layers) + 1):
                logits = self._graphs[selects]()
                if not selects or self._all_there():
                    break
                if not self.fits():  # the pool had to grow
                    return None
            else:
                return None
        finally:
            for layer in self._layers:
                layer.recording = False
        for layer in self._layers:
            layer.fed_count += 1
        self._fed += 1
        self._positions += self._pace
        return logits.clone()

    def _all_there(self) -> bool:
        """Whether all layers found what they chose; what they did not is fetched, and what is to stay is held."""
        assert isinstance(self._policy, PerToken)
        chosen = self._chosen.cpu().long()
        there = self._layers[0].pool.uses(chosen)
        ours = [ids[:count] for ids, count in zip(chosen, (chosen >= 0).sum(dim=1).tolist(), strict=True)]
        missed = False
        for number, (layer, ids) in enumerate(zip(self._layers, ours, strict=True)):
            had = there or layer.pool.has(number, ids)
            try:
                layer.note_chosen(ids, bring=not there or self._policy.keeps)
            except StoreDamaged:
                if not missed:
                    raise
                # Above a miss a layer chose by what it should not have seen: it may not want the damaged block.
            missed = missed or not had
        self._policy.chosen = dict(enumerate(ours))
        return there


def recordable(run: "Run") -> bool:
    """Whether a run's next step can have fixed shapes: its layers are on pages, of which there are enough, and what
    they select is known or stays on the device."""
    layers = _paged_layers(run)
    if not layers or not layers[0].has_room:
        return False
    return run.policy.settled or (isinstance(run.policy, PerToken) and all(layer.simple for layer in layers))


def _paged_layers(run: "Run") -> list[PagedLayer]:
    return [layer for layer in run.layers if isinstance(layer, PagedLayer)]


def _logits(session: "Session", run: "Run", ids: Tensor) -> Tensor:
    return session.forward([run], ids)[0, -1]


def _recorded(compute: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """What does as `compute` does, whose output is overwritten by the next call."""
    if device.type != "cuda":
        return compute
    compute()  # compiles kernels, and has libraries set themselves up, which a recording cannot
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            out = compute()
    except RuntimeError as error:
        said = f"decoding steps are not recorded, which is slower: {first_line(error)}"
        warnings.warn(said, SlowerPath, stacklevel=2)
        return compute

    def play() -> Tensor:
        graph.replay()
        return out

    return play
