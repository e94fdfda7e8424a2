"""Picture docs/crossover.png: two networks trained and merged by the commands of the README."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent.parent


def geomerge(*args: str) -> None:
    subprocess.run([Path(sys.executable).parent / "geomerge", *args], check=True)


with TemporaryDirectory() as folder:
    a, b, run = (f"{folder}/{name}" for name in ("a.pt", "b.pt", "run"))
    geomerge("train", "--manifold", "mnist", "--out", a)
    geomerge("train", "--manifold", "fashion-mnist", "--out", b, "--seed", "1")
    geomerge("merge", a, b, "--manifold", "mnist", "--out", run)
    (HERE / "docs").mkdir(exist_ok=True)
    shutil.copy(f"{run}/curves.png", HERE / "docs" / "crossover.png")
