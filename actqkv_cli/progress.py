"""How what takes long tells how far it is."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""(stage, how much is done, how much there is)"""


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody wants to see."""
