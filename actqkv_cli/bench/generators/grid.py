"""The needle in a haystack (Kamradt 2023): one sentence in the user's own text, at every depth of every length."""

from collections.abc import Callable, Sequence

from actqkv_cli.bench.examples import Example
from actqkv_cli.bench.generators.document import Document, fit_filler, plant_at_depth, repeat_sentences, take_first
from actqkv_cli.bench.generators.draw import Draw
from actqkv_cli.bench.generators.words import town
from actqkv_cli.errors import UsageError

_TREATS = ("plum dumplings", "roast chestnuts", "buckwheat pancakes", "apple fritters", "pickled trout")
_SEATS = ("the harbour wall", "the town hall steps", "the old ramparts", "the mill bridge", "the observatory roof")


def needle_grid(
    haystack: str, lengths: Sequence[int], depths: Sequence[float], seed: int, count: Callable[[str], int]
) -> list[Example]:
    """One document and question for each length and depth, all with the same needle.

    lengths: in tokens, of which a document has 97 to 100 %; depths: in [0, 1], taken at their word: the first and the
    last lie in the sink and the local window, as in the original. `count` sees a document about once. Raises
    UsageError if the haystack is empty, a depth is out of range, or a length too small for the needle.
    """
    for depth in depths:
        if not 0 <= depth <= 1:
            raise UsageError(f"a depth of {depth:g} is outside the document", "depths go from 0 to 1")
    draw = Draw("needle", seed)
    place, treat, seat = town(draw), draw.choice(_TREATS), draw.choice(_SEATS)
    needle = f"The best way to spend an afternoon in {place} is to sit on {seat} and eat {treat}."
    sentences = take_first(repeat_sentences(haystack))
    examples: list[Example] = []
    for length in lengths:
        number = 64
        for depth in depths:

            def build(number: int, depth: float = depth) -> Document:
                return plant_at_depth(needle, sentences(number), depth)

            number = fit_filler(build, length, count, start=number)  # of the depth before: mostly right again
            made = build(number)
            examples.append(
                Example(
                    id=f"needle-{seed}-{length}-{depth:g}",
                    task="needle",
                    context=made.text,
                    question=f"What is the best thing to eat during an afternoon in {place}?",
                    answers=(treat,),
                    metric="best_subspan_em",
                    max_tokens=32,
                    spans=made.spans,
                    depth=depth,
                )
            )
    return examples
