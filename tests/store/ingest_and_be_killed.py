"""Run as a script: ingests the sample in children that are killed at random moments, until one gets through.

Arguments: a folder for the libraries, how many of them. Prints the number of kills and of resumed ingests.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import store_sample
import torch

from actqkv_cli.store.manifest import load_unfinished


def attempt(sample: store_sample.Sample, home: Path, delay: float) -> bool:
    """Whether a child ingested the document before it was killed, `delay` seconds after its start."""
    child = os.fork()
    if not child:
        sample.finish(home)
        os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0


def main(homes: Path, count: int) -> None:
    torch.set_num_threads(1)
    os.fsync = lambda fd: None  # a kill does not lose what the system was given
    choose, sample = random.Random(1), store_sample.make()
    usual = float("inf")
    for number in range(4):  # the fastest, lest a slow moment's patience outlast most children
        started = time.perf_counter()
        sample.finish(homes / str(number))
        usual = min(usual, time.perf_counter() - started)
    kills = resumed = 0
    for number in range(4, count):
        home, patience = homes / str(number), usual
        while not attempt(sample, home, choose.uniform(0, patience)):
            if (sample.folder(home) / "manifest.json").exists():
                break  # killed between the commit and the exit
            kills += 1
            patience *= 1.05
            if (sample.folder(home) / "ingest.json").exists():
                resumed += len(load_unfinished(sample.folder(home)).segments) > 0
        (sample.folder(home) / "ingest.json").unlink(missing_ok=True)  # the same, a moment earlier
    print(kills, resumed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
