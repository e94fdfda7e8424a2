"""The command of sharded merges: its output, and one sentence for wrong input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from model_folders import TASKS

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_torchrun_merges_model_folders_and_refuses_in_one_sentence(
    place: Path, tmp_path: Path
) -> None:
    def merged(*options: str) -> subprocess.CompletedProcess[str]:
        started = ["-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "geomerge"]
        words = ["merge-sharded", *map(str, (place / task for task in TASKS)), *options]
        return subprocess.run(
            [sys.executable, *started, *words], cwd=tmp_path, capture_output=True, text=True,
            timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    tasks = [f"--manifold={place / task}.csv" for task in TASKS]
    few = ["--steps=2", f"--base={place / 'base'}", "--start-at=kronecker-mean"]
    done = merged(*tasks, *few, "--out=run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written to run by 2 processes") == 1
    assert "note: each network keeps layers of its own: bert.pooler.dense" in done.stdout
    report = json.loads((tmp_path / "run" / "merge.json").read_text())
    assert report["options"]["start_at"] == "kronecker-mean"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    refused = merged(tasks[0], "--out=other")
    said = "geomerge: expected a --manifold for each of 2 networks, got 1; name the task of each\n"
    assert refused.stderr.count(said) == 1
    assert "exitcode  : 2" in refused.stderr
