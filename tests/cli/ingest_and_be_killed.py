"""Run as a script: ingests a file in children that are killed at random moments, and resumes each.

Arguments: how many kills, a folder, then those of `actqkv ingest`. Prints how many kills there were, after how
many of them segments were kept, and after how many the resumed document was the uninterrupted one byte for byte.
Every other child is killed just after a file of its document appeared, changed its name or went.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch  # once, here, and not in every child

from actqkv_cli import __main__ as command


def start(home: Path, arguments: list[str]) -> int:
    child = os.fork()
    if not child:
        sys.argv = ["actqkv", "ingest", *arguments, "--home", str(home), "--quiet"]
        try:
            command.main()
        except SystemExit as leaving:
            os._exit(int(leaving.code or 0))
        os._exit(99)
    return child


def names(home: Path) -> set[str]:
    return {path.name for path in home.glob("[!.]*/*")}


def content(home: Path) -> dict[str, bytes]:
    (folder,) = home.glob("[!.]*")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def main(kills: int, homes: Path, arguments: list[str]) -> None:
    torch.set_num_threads(1)
    usual = 0.0
    for number in range(2):  # the first one is slower than usual
        whole, began = homes / f"whole-{number}", time.perf_counter()
        _, status = os.waitpid(start(whole, arguments), 0)
        assert status == 0, "the uninterrupted ingest failed"
        usual = time.perf_counter() - began
    expected, choose = content(whole), random.Random(1)
    done = resumed = identical = 0
    while done < kills:
        home, child = homes / "killed", -1
        shutil.rmtree(home, ignore_errors=True)
        delay, changes = choose.uniform(0, 0.9 * usual), choose.randint(1, 9)
        began, child, seen = time.perf_counter(), start(home, arguments), set[str]()
        while time.perf_counter() - began < (5 * usual if done % 2 else delay) and changes:
            if done % 2 and (now := names(home)) != seen:
                seen, changes = now, changes - 1
            if os.waitpid(child, os.WNOHANG)[0]:
                child = -1
                break
        if child < 0:  # it was through before its time had come
            continue
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        done += 1
        resumed += any(name.startswith("kv-") and not name.endswith(".tmp") for name in names(home))
        _, status = os.waitpid(start(home, arguments), 0)
        assert status == 0, f"after kill {done} the ingest did not resume"
        identical += content(home) == expected
    print(json.dumps({"kills": done, "resumed": resumed, "identical": identical, "seconds": round(usual, 2)}))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
