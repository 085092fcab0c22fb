"""What the kernels of full-size calls become for GPUs that are not here, in a process of its own: where the interpreter
was chosen, nothing can be compiled any more."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import actqkv_kernels
from actqkv_kernels.ahead_of_time import compiling_for
from actqkv_kernels.bench.calls import Call, Draw
from actqkv_kernels.bench.cases import CASES, LLAMA_8B
from actqkv_kernels.bench.checks import Record, attempt

CAPABILITIES = (80, 90)  # Ampere, Hopper


def compile_apart(names: Sequence[str]) -> list[Record]:
    """What the named cases compile to, for each capability: `kernels` (see `ahead_of_time.Machine`), or a `problem`."""
    path = os.pathsep.join(filter(None, [str(Path(actqkv_kernels.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "actqkv_kernels.bench.compiled", *names],
        env={**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        return [{"case": name, "capability": None, "problem": last} for name in names]
    return json.loads(done.stdout.splitlines()[-1])


def _compile(call: Call, capability: int) -> Record:
    with compiling_for(capability) as machines:
        call.run()
    return {"kernels": [asdict(machine) for machine in machines]}


def _main() -> None:
    rows = []
    for case in (case for case in CASES if case.name in sys.argv[1:]):
        call = case.make(LLAMA_8B, Draw("cpu", 0))
        for capability in CAPABILITIES:
            found = attempt(lambda call=call, capability=capability: _compile(call, capability))  # type: ignore[misc]
            rows.append({"case": case.name, "capability": capability, **found})
    print(json.dumps(rows))


if __name__ == "__main__":
    _main()
