"""The retrieval methods, one module each: it is named as `--policy` names it, and holds a class `Policy`."""

import pkgutil
from importlib import import_module

from actqkv_cli.errors import UsageError
from actqkv_cli.retrieval.policy import RetrievalPolicy, Task


def policy_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def make_policy(name: str, task: Task) -> RetrievalPolicy:
    """Raises UsageError for a name that there is not."""
    if name not in policy_names():
        raise UsageError(f"no policy is called {name!r}", f"choose one of {', '.join(policy_names())}")
    policy: RetrievalPolicy = import_module(f"{__name__}.{name}").Policy(task)
    return policy
