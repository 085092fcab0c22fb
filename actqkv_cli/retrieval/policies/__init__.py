"""The retrieval methods, one module each: it is named as `--policy` names it, and holds a class `Policy`."""

import pkgutil
from importlib import import_module
from types import ModuleType

from actqkv_cli.errors import UsageError
from actqkv_cli.retrieval.policy import RetrievalPolicy, Task
from actqkv_cli.store.manifest import Reading


def policy_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def usual_budget(name: str, reading: Reading, block_size: int) -> int:
    """Tokens per layer unless the user says otherwise: with the BLOCKS that a policy is best at, if it names them,
    else what the document was read with. Raises UsageError for a name that there is not."""
    blocks: int | None = getattr(_module(name), "BLOCKS", None)
    return reading.budget if blocks is None else reading.sink + reading.local + blocks * block_size


def make_policy(name: str, task: Task) -> RetrievalPolicy:
    """Raises UsageError for a name that there is not."""
    policy: RetrievalPolicy = _module(name).Policy(task)
    return policy


def _module(name: str) -> ModuleType:
    if name not in policy_names():
        raise UsageError(f"no policy is called {name!r}", f"choose one of {', '.join(policy_names())}")
    return import_module(f"{__name__}.{name}")
