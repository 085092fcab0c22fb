"""The names of the policies, told without importing one: each is called as its module."""

import pkgutil
from pathlib import Path


def policy_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / "policies")]))
