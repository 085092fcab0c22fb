"""The retrieval methods, one module each: it is named as `--policy` names it, and holds a class `Policy`.

A module may also say OPTIONS, words that follow its name (`acre:layer`), and BLOCKS, how many a layer is best given.
"""

from importlib import import_module
from types import ModuleType

from actqkv_cli.errors import UsageError
from actqkv_cli.retrieval.names import policy_names
from actqkv_cli.retrieval.policy import RetrievalPolicy, Task
from actqkv_cli.store.manifest import METHODS, ReadingSettings
from actqkv_cli.store.tensors import names_in


def usual_budget(name: str, reading: ReadingSettings, block_size: int, turn_blocks: int = 0) -> int:
    """Tokens per layer unless the user says otherwise: with a policy's BLOCKS, if it says so, else what the document
    was read with. turn_blocks: blocks of a conversation's turns. Raises UsageError for a name that there is not."""
    blocks: int | None = getattr(_module(name)[0], "BLOCKS", None)
    local = min(reading.local, turn_blocks * block_size)
    return reading.budget if blocks is None else reading.sink + local + blocks * block_size


def check_policy(name: str) -> None:
    """Raises UsageError for a name or an option that there is not."""
    _module(name)


def of_several_documents() -> list[str]:
    """The policies that documents can be asked with side by side, for they need nothing that is one document's own."""
    own = {*names_in(METHODS)}
    return [name for name in policy_names() if own.isdisjoint(_module(name)[0].Policy.needs)]


def make_policy(name: str, task: Task) -> RetrievalPolicy:
    """A policy by its name and options, as in `acre:layer:attended`. Raises UsageError for one that there is not."""
    module, options = _module(name)
    policy: RetrievalPolicy = module.Policy(task, *options)
    task.resident.tensors(*policy.needs)  # read at once
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
