"""Whether two ways agree, each on inputs of its own and with outputs that hold no old numbers."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from actqkv_kernels.bench.calls import Call

Record = dict[str, Any]


def check(make: Callable[[], Call], allowed: float, poison: bool = True) -> Record:
    """`error` of a call's outputs and whether it is `correct`, or the `problem`. make: always the same call.

    poison: what `torch.empty` gives holds NaN, or a number that is no index: nothing passes that was not written.
    """

    def errors() -> Iterator[float]:
        expected, call = tensors(make().reference()), make()
        with _Poisoned() if poison else nullcontext():
            found = tensors(call.run())
        for pair in zip(found, expected, strict=True):
            yield _error(*pair)

    record = attempt(lambda: {"error": max(errors())})
    return {"allowed": allowed, "correct": record.get("error", torch.inf) <= allowed, **record}


def attempt(part: Callable[[], Record]) -> Record:
    """What a part of the work gives, or its `problem`: the other parts go on."""
    try:
        return part()
    except Exception as error:
        return {"problem": f"{type(error).__name__}: {error}".strip().splitlines()[0]}


def _error(found: Tensor, expected: Tensor) -> float:
    """The greater of the error's root mean square and a tenth of its largest number, both relative to the expected
    numbers' root mean square. Raises ValueError where there is none: integers must be the same."""
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        raise ValueError(f"{found.dtype} {tuple(found.shape)}, not {expected.dtype} {tuple(expected.shape)}")
    if not found.is_floating_point():
        if different := int((found != expected).sum()):
            raise ValueError(f"{different} of {found.numel()} whole numbers differ")
        return 0.0
    if not (found.isfinite() & expected.isfinite()).all():
        raise ValueError("not all outputs are finite, or not all were written")
    found, expected = found.double(), expected.double()
    error = found - expected
    worst = torch.maximum(error.square().mean().sqrt(), error.abs().max() / 10)
    return float(worst / expected.square().mean().sqrt().clamp(min=1e-30))


def tensors(outputs: Any) -> list[Tensor]:
    """Those of a tensor, a tuple or a dataclass, some of which may be None."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if not isinstance(outputs, tuple):
        outputs = [getattr(outputs, field.name) for field in fields(outputs)]
    return [output for output in outputs if output is not None]


class _Poisoned(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is torch.empty:
            made.fill_(torch.nan if made.is_floating_point() else torch.iinfo(made.dtype).max)
        return made
