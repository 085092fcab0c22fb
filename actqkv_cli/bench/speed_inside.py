"""What `bench speed` measures inside of a process, each part in a clean one of its own:

python -m actqkv_cli.bench.speed_inside stock|decode|read '{…}'
"""

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

_BEGAN = time.perf_counter()

if TYPE_CHECKING:
    from torch import Tensor

    from actqkv_cli.model.load import LoadedModel


@dataclass(frozen=True)
class Spec:
    """model, document: folders; budget: tokens, of ours and of the stock model's context; full_tokens: how much of
    the document is read; again: whether a stock model that is loaded already is timed too."""

    model: str
    document: str
    dtype: str
    device: str
    question: str
    policy: str
    max_tokens: int
    budget: int
    rounds: int
    full_tokens: int
    again: bool = False

    def command(self, part: str) -> list[str]:
        """The command line of a process that measures a part, "stock", "decode" or "read"."""
        return [sys.executable, "-m", "actqkv_cli.bench.speed_inside", part, json.dumps(asdict(self))]


class _Clock:
    """The moments at which `generate` hands over its tokens; it begins with the prompt's."""

    def __init__(self, tell: bool) -> None:
        self._tell = tell
        self.moments: list[float] = []

    def put(self, tokens: "Tensor") -> None:
        self.moments.append(time.perf_counter())
        if self._tell and len(self.moments) == 2:
            _event("token")

    def end(self) -> None:
        pass

    @property
    def rate(self) -> float | None:
        """Tokens per second after the first."""
        times = self.moments[1:]
        return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None


def stock(job: Spec) -> dict[str, Any]:
    """The unmodified model, which reads document and question for every answer: once with all that a new process
    does, and once more where `again`."""
    loaded, seconds = _load(job)
    from actqkv_cli.model.prompt import encode_question
    from actqkv_cli.model.stock import stock_model

    question = encode_question(loaded.tokenizer, job.question).ids
    import torch

    began = time.perf_counter()
    model = stock_model(loaded.model)
    seconds["load"] += time.perf_counter() - began
    ids = torch.cat([_document_ids(job).long(), question])
    runs = []
    for number in range(2 if job.again else 1):
        began = time.perf_counter()
        clock = _generate(model, ids, job.max_tokens, tell=number == 0)
        first, end = clock.moments[1], clock.moments[-1]
        start = began if number else _BEGAN
        timings = {"first_token": first - start, "prefill": first - began, "total": end - start}
        runs.append(
            {
                "timings": {**({} if number else seconds), **timings},
                "answer_tokens": len(clock.moments) - 1,
                "tokens_per_second": clock.rate,
            }
        )
    return {"runs": runs}


def decode(job: Spec) -> dict[str, Any]:
    """Tokens per second after the first: ours on the document, and the stock model's with a context of as many
    tokens as the budget, in turn."""
    import torch

    from actqkv_cli.bench.decode import time_steps
    from actqkv_cli.engine.session import open_session
    from actqkv_cli.model.prompt import encode_question
    from actqkv_cli.model.stock import stock_model
    from actqkv_cli.store.reader import DocumentReader

    loaded, _ = _load(job)
    model = stock_model(loaded.model)
    context = _document_ids(job)[: job.budget].long()
    question = encode_question(loaded.tokenizer, job.question)

    def ours(tokens: int) -> float:
        with (
            DocumentReader(Path(job.document)) as reader,
            open_session(loaded.model, reader, job.budget) as session,
        ):
            run = session.start(question, job.policy, max_tokens=tokens + 1)
            run.step(int(run.logits.argmax()))  # on a GPU it records the step; the stock rate is without the first too
            return 1 / time_steps(run, tokens)

    ours(2)  # warm up
    _generate(model, context, 2)
    pairs = [(ours(job.max_tokens), _generate(model, context, job.max_tokens + 1).rate) for _ in range(job.rounds)]
    ratios = sorted(mine / theirs for mine, theirs in pairs if theirs)
    return {
        "policy": job.policy,
        "budget": job.budget,
        "stock_context": len(context),
        "tokens": job.max_tokens,
        "tokens_per_second": [mine for mine, _ in pairs],
        "stock_tokens_per_second": [theirs for _, theirs in pairs],
        "ratio": statistics.median(ratios),
        "ratio_range": [ratios[0], ratios[-1]],
        "threads": torch.get_num_threads(),
    }


def read(job: Spec) -> dict[str, Any]:
    """The document's first tokens, read by us, by the stock model in windows and as a whole; and what the machine
    could do."""
    from actqkv_cli.bench.ingest import measure
    from actqkv_cli.bench.machine import describe, measure_compute, measure_disk
    from actqkv_cli.model.load import DTYPES
    from actqkv_cli.store.library import scratch
    from actqkv_cli.store.manifest import load_manifest

    loaded, _ = _load(job)
    home = Path(job.document).parent
    window = load_manifest(Path(job.document)).reading.window
    shape = loaded.model.config.shape
    ids = _document_ids(job)[: job.full_tokens]
    with scratch(home) as folder:
        disk = measure_disk(folder)
    return {
        "read": measure(loaded, ids, job.budget, window, job.rounds, home, full=True),
        "compute": asdict(measure_compute(shape, DTYPES[job.dtype], loaded.device)),
        "disk": asdict(disk),
        "shape": asdict(shape),
        "machine": describe(loaded.device, job.dtype),
    }


def _load(job: Spec) -> "tuple[LoadedModel, dict[str, float]]":
    import torch  # noqa: F401

    from actqkv_cli.model.files import ModelFiles
    from actqkv_cli.model.load import load_model

    imported = time.perf_counter()
    files = ModelFiles(name=job.model, folder=Path(job.model), identity={})
    loaded = load_model(files, dtype=job.dtype, device=job.device)
    return loaded, {"import": imported - _BEGAN, "load": time.perf_counter() - imported}


def _document_ids(job: Spec) -> "Tensor":
    from actqkv_cli.store.reader import DocumentReader

    with DocumentReader(Path(job.document)) as reader:
        return reader.tokens()["ids"]


def _generate(model: Any, ids: "Tensor", tokens: int, tell: bool = False) -> _Clock:
    import torch

    clock = _Clock(tell)
    ids = ids[None].to(model.device)
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            streamer=clock,
        )
    return clock


def _event(kind: str, **fields: Any) -> None:
    sys.stdout.write(json.dumps({"type": kind, **fields}) + "\n")
    sys.stdout.flush()


def main() -> None:
    parts = {"stock": stock, "decode": decode, "read": read}
    part, job = sys.argv[1:]
    _event("done", **parts[part](Spec(**json.loads(job))))


if __name__ == "__main__":
    main()
