"""Random choices that come out the same on every platform and Python version."""

import random
from collections.abc import Sequence
from typing import TypeVar
from uuid import UUID

T = TypeVar("T")


class Draw:
    """Choices of one seed. Python promises for all time only what `random()` returns, so the rest is made from it."""

    def __init__(self, *seed: object) -> None:
        # As text: of an integer seed Python would drop the sign.
        self._random = random.Random(" ".join(map(str, seed))).random

    def below(self, end: int) -> int:
        """An integer in [0, end)."""
        return int(self._random() * end)

    def choice(self, items: Sequence[T]) -> T:
        """One of the items, each as likely as any other."""
        return items[self.below(len(items))]

    def sample(self, items: Sequence[T], number: int) -> list[T]:
        """`number` of the items, each at most once, in random order (Fisher-Yates)."""
        pool = list(items)
        for place in range(number):
            other = place + self.below(len(pool) - place)
            pool[place], pool[other] = pool[other], pool[place]
        return pool[:number]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """All items in random order."""
        return self.sample(items, len(items))

    def integers(self, digits: int, number: int) -> list[str]:
        """`number` different integers of that many digits."""
        found: dict[str, None] = {}
        while len(found) < number:
            found[str(10 ** (digits - 1) + self.below(9 * 10 ** (digits - 1)))] = None
        return list(found)

    def uuid(self) -> str:
        """A random UUID, version 4."""
        words = [self.below(1 << 32).to_bytes(4, "big") for _ in range(4)]
        return str(UUID(bytes=b"".join(words), version=4))
