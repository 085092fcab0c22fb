"""The command's entry: a question goes straight to the worker if one runs, before anything slow is imported."""

import os
import sys
import time

WORKER_COMMANDS = ("ask", "chat")


def main() -> None:
    """Run the command line and exit with its code."""
    began = time.perf_counter()
    if "OMP_WAIT_POLICY" not in os.environ:
        # Threads that spin long while they wait cost torch half of its speed and more on a machine that has other work.
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if sys.argv[1:2] and sys.argv[1] in WORKER_COMMANDS:
        from actqkv_cli.worker import client

        code = client.run(sys.argv[1:])
        if code is not None:
            sys.exit(code)
    from actqkv_cli.invocation import main as run_here

    run_here(began)


if __name__ == "__main__":
    main()
