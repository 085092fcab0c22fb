"""A document that was just ingested is made ready in the worker, so that its first question is as quick as the second.

A process of its own asks for that, which nobody waits for and nobody hears of: without it, the first question does it.
"""

import contextlib
import subprocess
import sys
from collections.abc import Mapping, Sequence

from actqkv_cli.worker import client

# Answering loads, opens, indexes and compiles all that the next question needs; the second token takes a decoding step.
_DRY_RUN = ["ask", "What is this about?", "--max-tokens", "2", "--quiet"]


def prepare(options: Sequence[str], environ: Mapping[str, str]) -> None:
    """Begin to make ready what an `ask` with these options would ask.

    environ: the user's, as a later `ask` has it; libraries that were imported may have changed ours, and a worker that
    was started with another is replaced.
    """
    nothing = subprocess.DEVNULL
    with contextlib.suppress(OSError):
        # As the worker itself: imports nothing from the current folder, and no Ctrl-C or hang-up reaches it.
        subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, *options],
            stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True, env=dict(environ),
        )  # fmt: skip


if __name__ == "__main__":
    client.hand_over([*_DRY_RUN, *sys.argv[1:]])
