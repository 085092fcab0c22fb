"""`bench decode`: real steps over documents that no one had to read."""

from typing import Any

import pytest
import tiny
import torch

from actqkv_cli.bench import decode
from actqkv_cli.engine.run import Run
from actqkv_cli.model.config import parse_config

CONFIG = parse_config(tiny.CONFIGS["llama"])


def measured(policies: list[str], **changes: Any) -> dict[str, Any]:
    settings = {"lengths": [1000, 5000], "budget": None, "rounds": 2, "tokens": 3, **changes}
    return decode.measure(CONFIG, policies=policies, device=torch.device("cpu"), dtype="float32", **settings)


def test_a_row_for_each_length_and_policy() -> None:
    record = measured(["hybrid", "actqkv:every4"])
    assert [(row["document_tokens"], row["policy"]) for row in record["rows"]] == [
        (length, policy) for length in (1000, 5000) for policy in ("hybrid", "actqkv:every4")
    ]
    for row in record["rows"]:
        low, high = row["range"]
        assert 0 < low <= row["seconds_per_token"] <= high
        assert row["times_weights"] == pytest.approx(row["seconds_per_token"] / record["weights"]["seconds"])
    matrices = 4 * (2 * 48 * 64 + 2 * 48 * 32 + 3 * 48 * 64) + 1000 * 48  # four layers, and the output head
    assert record["weights"]["bytes"] == 4 * matrices


def test_the_budget_is_attended_whatever_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    attended: list[list[int]] = []
    real = Run.step

    def noting(self: Run, token: int) -> torch.Tensor:
        logits = real(self, token)
        attended.append(self.attended_tokens)
        return logits

    monkeypatch.setattr(Run, "step", noting)
    measured(["streaming"], budget=960, lengths=[2000, 9000])
    assert attended
    # The document's last block may be a short one.
    assert all(960 - 32 < tokens <= 960 for layers in attended for tokens in layers)
