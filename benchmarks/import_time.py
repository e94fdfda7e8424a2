"""Start-up: `import geomerge` and `geomerge --help` against `import torch`, each a new process."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 5
COMMANDS = {
    "import torch": [sys.executable, "-c", "import torch"],
    "import geomerge": [sys.executable, "-c", "import geomerge"],
    "import geomerge, all names": [
        sys.executable,
        "-c",
        "import geomerge; [getattr(geomerge, n) for n in geomerge.__all__]",
    ],
    "geomerge --help": [str(Path(sys.executable).parent / "geomerge"), "--help"],
}


def seconds(command: list[str]) -> float:
    found = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        found.append(time.perf_counter() - start)
    return statistics.median(found)


base = seconds(COMMANDS["import torch"])
for name, command in COMMANDS.items():
    took = seconds(command)
    print(f"{name:<28} {took:6.2f} s   {took / base:5.2f} x import torch")
