"""A model's dimensions, and the arithmetic that follows from them, without its weights."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """hidden, intermediate: widths; window: the tokens that the model was trained for; tied: the output head is the
    embedding."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    window: int
    tied: bool

    @property
    def products(self) -> list[tuple[int, int]]:
        """(out, in) of a layer's seven matrices: query, key, value, output, gate, up, down."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = [(query, self.hidden), (key, self.hidden), (key, self.hidden), (self.hidden, query)]
        wide, narrow = (self.intermediate, self.hidden), (self.hidden, self.intermediate)
        return [*attention, wide, wide, narrow]

    @property
    def layer_parameters(self) -> int:
        """Of one layer's matrices; norms and biases are less than a thousandth of them."""
        return sum(out * into for out, into in self.products)

    @property
    def parameters(self) -> int:
        """Of all matrices."""
        return self.layers * self.layer_parameters + (1 if self.tied else 2) * self.vocabulary * self.hidden

    def product_flops(self, tokens: int) -> int:
        """Of the layers' matrix products over `tokens`: a multiplication and an addition per parameter."""
        return 2 * self.layers * self.layer_parameters * tokens

    def attention_flops(self, pairs: int) -> int:
        """Of attention over so many pairs of a query and a key: per head and dimension a multiplication and an
        addition for the score, and as many for the value."""
        return 4 * self.layers * self.heads * self.head_dim * pairs


def causal_pairs(tokens: int) -> int:
    """Pairs of a query and a key when every token attends to itself and to all before it."""
    return tokens * (tokens + 1) // 2


def windowed_pairs(tokens: int, window: int, budget: int) -> int:
    """The same for reading in windows: each attends causally to itself, and to at most `budget` tokens before it."""
    pairs = 0
    for start in range(0, tokens, window):
        size = min(window, tokens - start)
        pairs += causal_pairs(size) + size * min(start, budget)
    return pairs
