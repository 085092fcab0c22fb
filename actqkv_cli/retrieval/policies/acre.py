"""ACRE (arXiv 2412.12486), training-free: a small L1 cache shows the question where to refill from the full L2 cache.

L1 holds one token of every group of blocks. A first pass attends to sink and L1; the attention over L1
says which groups matter and, by its entropy, how many: those are refilled beside the rest of L1 for a second pass
over the question, and stay for the answer.

Options: the last layer's attention selects for all, unless `layer` (each its own) or `mean` (of all layers) is given;
`attended` takes each group's most attended token into L1, not its last; `head-entropy` is the mean of single heads'.
For ablation: `l1` refills nothing, `fixed` always as much as fits, `random` as much as it should but anywhere, `all`
everything.
"""

import math
import zlib

import torch
from torch import Tensor

from actqkv_cli.errors import UsageError
from actqkv_cli.retrieval.policy import Pass, QueryDriven, Selection, Task

OPTIONS = frozenset({"layer", "mean", "attended", "head-entropy", "l1", "fixed", "random", "all"})


class Policy(QueryDriven):
    needs: tuple[str, ...] = ("l1",)
    selects_once = True

    def __init__(self, task: Task, *options: str) -> None:
        for one, other in (("layer", "mean"), ("l1", "all")):
            if one in options and other in options:
                raise UsageError(f"acre takes either {one} or {other}, not both")
        self._task = task
        self._options = options
        self.scout_layers = layers = task.resident.layers
        count = len(task.candidates)
        self._size, self._max_refilled = grouping(count, task.block_budget * task.block_size, task.block_size)
        if "l1" in options:
            self._size, self._max_refilled = l1_grouping(count, task.block_budget * task.block_size), 0
        if "all" in options:
            self._size, self._max_refilled = 1, count
        starts = range(0, count, self._size) if self._size else range(0)
        self._groups = [task.candidates[at : at + self._size] for at in starts]
        self._load_l1()
        m = len(self._groups)
        self._attention = torch.zeros(layers, m)  # of the question over L1, by layer
        self._head_ratio = torch.zeros(layers)
        self._refilled = [torch.zeros(m, dtype=torch.bool)] * layers
        self._selected: dict[int, Selection] = {}  # by layer, in the pass over the question and for the answer
        self._scouting = False
        self.entropy_ratio = 0.0

    def _load_l1(self) -> None:
        """The L1 token of every group: `tokens` `(M,)`, `states` `(L, 2, Hkv, M, d)`."""
        resident, size = self._task.resident, self._task.block_size
        if "attended" in self._options:
            self.needs = ("l1_attended", "l1_attended_tokens", "l1_attended_mass")
            states, tokens, mass = resident.tensors(*self.needs)
            received = mass.cpu()
            blocks = [max(group, key=lambda block: float(received[block])) for group in self._groups]
            self._tokens = tokens.cpu().long()[blocks]
        else:
            (states,) = resident.tensors(*self.needs)
            blocks = [group[-1] for group in self._groups]
            self._tokens = torch.tensor([min((block + 1) * size, self._task.tokens) - 1 for block in blocks]).long()
        self._states = states[:, torch.tensor(blocks).long().to(states.device)].permute(0, 2, 3, 1, 4)

    def begin(self, step: Pass) -> None:
        self._scouting = step == "scout" and bool(self._groups)
        if step != "decode":
            self._selected = {}
        if step != "question" or not self._groups:
            return
        attention, ratios = self._attention, self._head_ratio
        if "mean" in self._options:
            attention, ratios = attention.mean(dim=0, keepdim=True), ratios.mean(dim=0, keepdim=True)
        elif "layer" not in self._options:
            attention, ratios = attention[-1:], ratios[-1:]
        if "head-entropy" not in self._options:
            ratios = entropy_ratio(attention)
        self.entropy_ratio = float(ratios.mean())
        self._attention = attention.mean(dim=0)
        chosen = [self._choose(a, float(ratio)) for a, ratio in zip(attention, ratios, strict=True)]
        self._refilled = chosen if len(chosen) == self.scout_layers else chosen * self.scout_layers

    def _choose(self, attention: Tensor, ratio: float) -> Tensor:
        """Which groups to refill, bool `(M,)`."""
        # Where all groups fit there is nothing to save, whatever the question looks at.
        whole = {"fixed", "all"} & set(self._options) or self._max_refilled == len(self._groups)
        highest = self._max_refilled
        count = highest if whole else refill_volume(ratio, math.ceil(highest / 4), highest)
        if "random" in self._options:
            seed = zlib.crc32(self._task.text.encode())
            attention = torch.rand(len(attention), generator=torch.Generator().manual_seed(seed))
        refilled = torch.zeros(len(attention), dtype=torch.bool)
        refilled[attention.topk(min(count, len(attention))).indices] = True
        return refilled

    def select(self, layer: int, queries: Tensor) -> Selection:
        if self._scouting:
            own = queries[:, self._task.own]
            self._look(layer, own if own.shape[1] else queries)
        if layer not in self._selected:
            self._selected[layer] = self._selection(layer)
        return self._selected[layer]

    def _selection(self, layer: int) -> Selection:
        refilled = self._refilled[layer]
        chosen = [group for group, whole in zip(self._groups, refilled.tolist(), strict=True) if whole]
        blocks = [block for group in chosen for block in group]
        left = (~refilled).nonzero()[:, 0]
        states = self._states[layer][:, :, left.to(self._states.device)]
        return Selection(torch.tensor(blocks, dtype=torch.int64), self._tokens[left], states)

    def _look(self, layer: int, queries: Tensor) -> None:
        """Note the question's un-rotated attention over L1, and its heads' mean entropy. queries: `(H, Wq, d)`."""
        keys = self._states[layer, 0].float()
        grouped = queries.float().reshape(len(keys), -1, queries.shape[-1])
        p = torch.softmax(grouped @ keys.mT * queries.shape[-1] ** -0.5, dim=-1)  # (Hkv, G Wq, M)
        self._attention[layer] = p.mean(dim=(0, 1))
        self._head_ratio[layer] = entropy_ratio(p).mean()

    def ranking(self, mass: Tensor) -> Tensor:
        """A group's attention for each of its blocks; among those, and elsewhere, by what they received at the end."""
        scores = mass.clone()
        if self._attention.dim() == 1 and mass.max() > 0:
            scores *= 1e-3 / len(mass) / float(mass.max())
            for group, attention in zip(self._groups, self._attention.tolist(), strict=True):
                scores[group.start : group.stop] += attention
        return scores


def grouping(blocks: int, max_tokens: int, block_size: int) -> tuple[int, int]:
    """Blocks to a group, and how many groups at most can be refilled, so that both fit into `max_tokens`.

    L1 of M tokens and k whole groups of n take M + k (n - 1). Of the group sizes that of most refilled groups is
    taken; where none can be, the smallest of which L1 alone fits.
    """

    def volume(size: int) -> int:
        entries = -(-blocks // size)
        return min(entries, (max_tokens - entries) // max(size * block_size - 1, 1)) if max_tokens >= entries else -1

    best = max(range(1, blocks + 1), key=volume, default=0)
    return (best, volume(best)) if best and volume(best) > 0 else (l1_grouping(blocks, max_tokens), 0)


def l1_grouping(blocks: int, max_tokens: int) -> int:
    """Blocks to a group so that L1 alone takes at most `max_tokens`; 0 if there is no room."""
    return -(-blocks // max_tokens) if max_tokens else 0


def refill_volume(ratio: float, min_groups: int, max_groups: int) -> int:
    """How many groups to refill: from `min_groups` for a one-hot attention (entropy ratio 0) to `max_groups` for a
    uniform one."""
    return min(max_groups, max(min_groups, round(min_groups + (max_groups - min_groups) * ratio)))


def entropy_ratio(attention: Tensor) -> Tensor:
    """Entropy over ln M of distributions `(..., M)`, in [0, 1]; 0 where M is 1."""
    uniform = math.log(max(attention.shape[-1], 2))
    return torch.special.entr(attention.float()).sum(dim=-1).div(uniform).clamp(0, 1)
