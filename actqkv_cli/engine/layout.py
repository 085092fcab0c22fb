"""Which tokens a window sees: sink, candidate blocks, local window."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Sizes in tokens; all but `budget` are multiples of `block_size`."""

    block_size: int
    sink: int
    local: int
    budget: int

    def __post_init__(self) -> None:
        if self.sink % self.block_size or self.local % self.block_size:
            raise ValueError("sink and local must be multiples of the block size")
        if self.budget < self.sink + self.local:
            raise ValueError("the budget must cover sink and local window")

    @property
    def retrieved_blocks(self) -> int:
        """Blocks retrieved per layer: what the budget leaves beside sink and local window."""
        return (self.budget - self.sink - self.local) // self.block_size

    def near_start(self, position: int) -> int:
        """The first block of the local window before `position`: at most `local` tokens, from a block's start."""
        return max(0, -(-(position - self.local) // self.block_size))

    def sink_blocks(self, position: int) -> int:
        return min(self.sink // self.block_size, self.near_start(position))

    def candidates(self, position: int) -> range:
        """The blocks between sink and local window."""
        return range(self.sink_blocks(position), self.near_start(position))
