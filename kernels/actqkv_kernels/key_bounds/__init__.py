"""Bounds of a block's keys, and what a query's product with any of them is at most (Quest, arXiv 2406.10774)."""

from torch import Tensor

from actqkv_kernels.key_bounds import reference


def key_bounds(keys: Tensor, tokens: Tensor) -> Tensor:
    """The least and the greatest value of each channel over a block's keys.

    keys: `(..., Hkv, b, d)`; tokens: `(...)` int, how many of a block's b keys are real (1..b). Returns
    `(..., 2, Hkv, d)` in the keys' dtype, least then greatest.
    """
    return reference.key_bounds(keys, tokens)


def bound_scores(queries: Tensor, bounds: Tensor) -> Tensor:
    """The upper bound of q . k / sqrt(d) over each block's keys, mean over a window's queries, summed over heads.

    queries: `(H, W, d)`; bounds: `(N, 2, Hkv, d)`. Returns `(N,)` fp32.
    """
    if queries.shape[0] % bounds.shape[2] or queries.shape[2] != bounds.shape[3]:
        raise ValueError(f"queries {tuple(queries.shape)} do not fit bounds {tuple(bounds.shape)}")
    return reference.bound_scores(queries, bounds)
