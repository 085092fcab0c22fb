"""Attention of a window's queries over [far: sink and retrieved blocks | near: local window and self]."""

from dataclasses import dataclass

from torch import Tensor

from actqkv_kernels.block_attention import gathered, reference
from actqkv_kernels.block_attention.workspace import Workspace

__all__ = ["AttentionOutput", "Workspace", "block_attention"]


@dataclass(frozen=True)
class AttentionOutput:
    """out: `(H, W, d)` in the queries' dtype; mass: `(Hkv, F + N)` fp32 attention that each key received, or None."""

    out: Tensor
    mass: Tensor | None


def block_attention(
    far_query: Tensor,
    near_query: Tensor,
    far: tuple[Tensor, Tensor],
    near: tuple[Tensor, Tensor],
    *,
    scaling: float,
    mask: Tensor | None = None,
    want_mass: bool = False,
    workspace: Workspace | None = None,
    backend: str = "auto",
) -> AttentionOutput:
    """One joint softmax over far and near keys, each side seen by queries rotated for it (DESIGN section 3).

    far_query, near_query: `(H, W, d)`, the same queries rotated twice; far, near: (keys, values) of `(Hkv, F, d)`
    and `(Hkv, N, d)`, keys rotated; mask: bool `(W, C)`, True where a query may see one of the last C of the
    F + N keys (the others are seen by all). mass is summed over a kv head's queries. workspace: memory for the
    scores, kept from call to call. backend: `reference` (the formula), `gathered` (few passes over reused memory);
    `auto` takes the latter.
    """
    heads, _, dim = near_query.shape
    for keys, values in (far, near):
        if keys.shape != values.shape or keys.shape[-1] != dim or heads % keys.shape[0]:
            raise ValueError(
                f"keys {tuple(keys.shape)}, values {tuple(values.shape)} do not fit {heads} heads of {dim}"
            )
    if backend not in ("auto", "reference", "gathered"):
        raise ValueError(f"backend must be auto, reference or gathered, got {backend!r}")
    if backend == "reference":
        return AttentionOutput(*reference.block_attention(far_query, near_query, far, near, scaling, mask, want_mass))
    workspace = workspace or Workspace()
    return AttentionOutput(
        *gathered.block_attention(far_query, near_query, far, near, scaling, mask, want_mass, workspace)
    )
