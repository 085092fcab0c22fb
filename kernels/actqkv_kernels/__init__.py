"""The operations of actqkv's core, each with a short torch reference that reads like its formula.

One folder an operation: `__init__.py` checks the arguments and chooses an implementation, `reference.py` is
the definition. Importing this package imports neither triton nor transformers.
"""

from actqkv_kernels.activation_probe import activation_probe
from actqkv_kernels.block_scores import block_scores, density
from actqkv_kernels.block_votes import block_votes
from actqkv_kernels.budget_shares import budget_shares
from actqkv_kernels.key_bounds import bound_scores, key_bounds
from actqkv_kernels.page_writes import write_pages
from actqkv_kernels.paged_attention import PageList, Workspace, paged_attention
from actqkv_kernels.representatives import anchor_representatives, mean_representatives
from actqkv_kernels.top_blocks import TopBlocks, top_blocks

__all__ = [
    "PageList",
    "TopBlocks",
    "Workspace",
    "activation_probe",
    "anchor_representatives",
    "block_scores",
    "block_votes",
    "bound_scores",
    "budget_shares",
    "density",
    "key_bounds",
    "mean_representatives",
    "paged_attention",
    "top_blocks",
    "write_pages",
]
