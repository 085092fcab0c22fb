"""One byte changed anywhere in a store: noticed, or without any effect."""

import os
import random
from pathlib import Path
from typing import Any

from sandbox import Sandbox, flip

from actqkv_cli.config import Settings
from actqkv_cli.engine.answer import Sampling, decode
from actqkv_cli.engine.session import open_session
from actqkv_cli.errors import IdentityMismatch, StoreDamaged
from actqkv_cli.loading import locate
from actqkv_cli.model.load import load_model
from actqkv_cli.model.prompt import encode_question
from actqkv_cli.retrieval.sources import passages
from actqkv_cli.store.reader import DocumentReader
from actqkv_cli.store.verify import verify_document

FLIPS = int(os.environ.get("ACTQKV_FLIPS", "200"))


def ask(folder: Path, loaded: Any, policy: str) -> object:
    """Answer, sources and all else that `actqkv ask` would print of a document."""
    with DocumentReader(folder) as reader, open_session(loaded.model, reader, 1024) as session:
        run = session.start(encode_question(loaded.tokenizer, "Who built the lighthouse?"), policy, 4)
        answer = decode(run, loaded.tokenizer, loaded.stop_tokens, Sampling(1.0, 0.9, 3, 4))
        sources = passages(reader, run.ranking, run.attended)
        blocks = [chosen.tolist() for chosen in run.blocks_of_layers]
        return answer, sources, blocks, run.logits.tolist(), reader.manifest


def ask_both(folder: Path, loaded: Any) -> object:
    """With the default policy, and with one that needs the tensors of methods.safetensors."""
    return ask(folder, loaded, "heads"), ask(folder, loaded, "acre")


def failure(folder: Path, loaded: Any, expected: object) -> str:
    """The error of an ask, or "" where it gives what is expected."""
    try:
        found = ask_both(folder, loaded)
    except (StoreDamaged, IdentityMismatch) as error:
        return error.message
    assert found == expected, "a changed answer without an error"
    return ""


def test_200_flips(library: Sandbox, tiny: Path, tmp_path: Path) -> None:
    box = library.copy(tmp_path)
    folder = box.folder("handbook")
    settings = Settings(home=box.home, cache=library.cache, device="cpu", offline=True)
    loaded = load_model(locate(str(tiny), settings, quiet=True), dtype="float32", device=settings.device)
    expected = ask_both(folder, loaded)
    assert ask_both(folder, loaded) == expected
    files = sorted(folder.iterdir())
    assert len(files) == 7  # manifest, text, tokens, index, methods, and two segments
    draw, counts = random.Random(5), {"by ask": 0, "by verify": 0, "harmless": 0}
    for number in range(FLIPS):
        path = files[number % len(files)]
        offset, mask = draw.randrange(path.stat().st_size), 1 << draw.randrange(8)
        flip(path, offset, mask)
        told, problems = failure(folder, loaded, expected), verify_document(folder)
        if told:
            assert problems, f"{path.name} at {offset}: ask noticed, verify did not: {told}"
        if not problems:
            assert path.name == "manifest.json", f"{path.name} at {offset}: nobody noticed"
        counts["by ask" if told else "by verify" if problems else "harmless"] += 1
        flip(path, offset, mask)
    assert ask_both(folder, loaded) == expected
    assert verify_document(folder) == []
    print(counts)
    assert sum(counts.values()) == FLIPS
    assert counts["by ask"] > FLIPS / 2
