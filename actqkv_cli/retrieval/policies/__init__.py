"""The retrieval methods, one module each: it is named as `--policy` names it, and holds a class `Policy`.

A module may also say OPTIONS, words that follow its name (`acre:layer`); BLOCKS, how many a layer is best given; and
NEEDS, the tensors that it keeps in memory.
"""

from importlib import import_module
from types import ModuleType

from actqkv_cli.errors import UsageError
from actqkv_cli.retrieval.names import policy_names
from actqkv_cli.retrieval.policy import RetrievalPolicy, Task
from actqkv_cli.store.manifest import Reading


def usual_budget(name: str, reading: Reading, block_size: int, said: int = 0) -> int:
    """Tokens per layer unless the user says otherwise: with a policy's BLOCKS, if it says so, else what the document
    was read with. said: blocks of a conversation's turns. Raises UsageError for a name that there is not."""
    blocks: int | None = getattr(_module(name)[0], "BLOCKS", None)
    local = min(reading.local, said * block_size)
    return reading.budget if blocks is None else reading.sink + local + blocks * block_size


def needs(name: str) -> tuple[str, ...]:
    """The tensors that a policy keeps in memory. Raises UsageError for a name that there is not."""
    tensors: tuple[str, ...] = getattr(_module(name)[0], "NEEDS", ())
    return tensors


def make_policy(name: str, task: Task) -> RetrievalPolicy:
    """A policy by its name and options, as in `acre:layer:attended`. Raises UsageError for one that there is not."""
    module, options = _module(name)
    policy: RetrievalPolicy = module.Policy(task, *options)
    return policy


def _module(name: str) -> tuple[ModuleType, list[str]]:
    name, *options = name.split(":")
    if name not in policy_names():
        raise UsageError(f"no policy is called {name!r}", f"choose one of {', '.join(policy_names())}")
    module = import_module(f"{__name__}.{name}")
    known = sorted(getattr(module, "OPTIONS", ()))
    for option in options:
        if option not in known:
            raise UsageError(f"policy {name} has no option {option!r}", f"it has {', '.join(known) or 'none'}")
    return module, options
