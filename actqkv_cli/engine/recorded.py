"""A decoding step of fixed shapes: recorded once as a CUDA graph, and played for every token without launch overhead.

What changes from token to token lies in tensors that the recorded step reads. Where a policy selects anew, the
selection stays on the device as well; if a block of it was missing, it is fetched, and the step is played again.
"""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from actqkv_cli.engine.layer import Layer, StepState
from actqkv_cli.errors import StoreDamaged, first_line
from actqkv_cli.retrieval.policy import PerToken, RetrievalPolicy
from actqkv_kernels.backend import SlowerPath


class RecordedStep:
    """The next tokens of one question, for as long as `fits` says so."""

    def __init__(
        self,
        layers: Sequence[Layer],
        policy: RetrievalPolicy,
        forward: Callable[[Sequence[Sequence[Layer]], Tensor], Tensor],
    ) -> None:
        """For what is `recordable`. forward: (rows of layers, tokens `(1, 1)`) -> logits `(1, 1, V)` fp32."""
        self._policy = policy
        self._layers = layers
        device = layers[0].pool.device
        self._ids = torch.zeros((1, 1), dtype=torch.int64, device=device)
        offset = torch.zeros((), dtype=torch.int32, device=device)
        positions = torch.stack([layer.next_positions() for layer in self._layers])  # (L, 2, 1)
        max_blocks = policy.max_blocks() if isinstance(policy, PerToken) else 0
        chosen = torch.full((len(self._layers), max_blocks), -1, dtype=torch.int32, device=device)
        for number, layer in enumerate(self._layers):
            layer.record(StepState(offset, positions[number], chosen[number]), policy)
        self._offset, self._positions, self._chosen = offset, positions, chosen
        self._fed = self._layers[0].fed_count
        self._pace = self._layers[0].pace
        self._kept = [layer.reads() for layer in self._layers]  # for a graph does not keep what it reads
        self._forward = forward
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

    def _compute(self) -> Tensor:
        return self._forward([self._layers], self._ids)[0, -1]

    def _all_there(self) -> bool:
        """Whether all layers found what they chose; what they did not is fetched, and what is to stay is pinned."""
        assert isinstance(self._policy, PerToken)
        chosen = self._chosen.cpu().long()
        there = self._layers[0].pool.uses(chosen)
        ours = [ids[:count] for ids, count in zip(chosen, (chosen >= 0).sum(dim=1).tolist(), strict=True)]
        missed = False
        for number, (layer, ids) in enumerate(zip(self._layers, ours, strict=True)):
            had = there or layer.pool.has(number, ids)
            try:
                layer.note_chosen(ids, load=not there or self._policy.keeps)
            except StoreDamaged:
                if not missed:
                    raise
                # Above a miss a layer chose by what it should not have seen: it may not want the damaged block.
            missed = missed or not had
        self._policy.chosen = dict(enumerate(ours))
        return there


def recordable(layers: Sequence[Layer], policy: RetrievalPolicy) -> bool:
    """Whether a question's next step can have fixed shapes: kernels run, there are pages enough, and what is selected
    is known or stays on the device."""
    if not layers[0].on_kernels or not layers[0].has_room:
        return False
    return policy.selects_once or (isinstance(policy, PerToken) and all(layer.simple for layer in layers))


def _recorded(compute: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """A function that returns what `compute` does, in a tensor that the next call overwrites."""
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
