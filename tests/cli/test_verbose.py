"""Messages of other packages, which ``--verbose`` shows beside those of geomerge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A command that fails in torch's own code."""
    (tmp_path / "odd_net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Odd(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return super().forward(torch.cat([x, x], 1)[:, :9])\n"
        "def make(): return Odd(10, 3)\n"
    )
    import torch
    from torch import nn

    torch.save(nn.Linear(10, 3).state_dict(), tmp_path / "a.pt")
    np.savez(tmp_path / "a.npz", x=np.ones((30, 10), np.float32), y=np.arange(30) % 3)
    return ["evaluate", "a.pt", "--arch", "odd_net:make", "--manifold", "a.npz"]


def test_torchs_own_sentence_is_shown(geomerge: Any, words: list[str], tmp_path: Path) -> None:
    plain = geomerge(*words, cwd=tmp_path)
    assert plain.returncode == 2
    assert "RuntimeError" not in plain.stderr
    said = geomerge(*words, "--verbose", cwd=tmp_path)
    assert said.returncode == 2
    first, *rest = said.stderr.strip().splitlines()
    assert first == plain.stderr.strip()
    assert any("RuntimeError: mat1 and mat2 shapes" in line for line in rest)
    assert "Traceback" not in said.stderr


def test_a_command_without_other_packages_says_nothing_more(geomerge: Any, tmp_path: Path) -> None:
    said = geomerge("train", "--task", "digits", "--out", "a.txt", "--verbose", cwd=tmp_path)
    assert said.returncode == 2
    assert len(said.stderr.strip().splitlines()) == 1


def test_events_have_it_too(geomerge: Any, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"PK\x03\x04 and no more")
    said = geomerge("merge", "a.pt", "a.pt", "--verbose", "--log-json", cwd=tmp_path)
    events = [json.loads(line) for line in said.stderr.strip().splitlines()]
    assert [event["event"] for event in events[:2]] == ["failed", "cause"]
    assert "BadZipFile" in events[1]["message"]
