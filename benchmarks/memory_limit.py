"""Peak memory of whole merges under --memory, one for each form of the metric's factors.

    python benchmarks/memory_limit.py --work build/bench

MLPs of three hidden layers of 800 units for the digits of scikit-learn, few steps, each merge in a
process of its own. Every form has a limit between the least one that the plan names for it and that
of the form before, found in another process that has loaded the same. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import Rows, expert, write_results
from torch import nn

TASKS = ("digits", "digits-permuted")
ARCH = f"{Path(__file__).stem}:wide"
INPUTS = 64  # per pass, where the form before does not fit yet
LOADED = """
import json, resource, sys
from geomerge import MergeOptions
from geomerge.expert_options import DataOptions
from geomerge.runs import run_merge
files, data = sys.argv[1:3], DataOptions(manifold=("digits",))
options = MergeOptions(damping=1e-3, steps=10)
"""
PLAN = (
    LOADED
    + """
from geomerge.errors import Problems
from geomerge.loading import load_experts
from geomerge.merging.memory import ways
from geomerge.merging.prepare import prepare
prepared = prepare(load_experts(files, data), options, Problems(strict=True))
print(json.dumps(ways(prepared)))
"""
)
MERGE = (
    LOADED
    + """
from geomerge.options import replace_options
if sys.argv[4]:
    options = replace_options(options, memory=sys.argv[4])
_, report, _ = run_merge(files, options, data, out=sys.argv[3])
peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
row = next(r for r in report["results"] if r["name"] == "crossover")
said = [note for note in report["notes"] if note.startswith("`memory`")]
print(json.dumps({"peak": peak, "select": row["select"], "chosen": said}))
"""
)


def wide() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 800), nn.ReLU(), nn.Linear(800, 800), nn.ReLU(),
        nn.Linear(800, 800), nn.ReLU(), nn.Linear(800, 10),
    )  # fmt: skip


def child(work: Path, code: str, *words: str) -> Any:
    """Run code in a process of its own on the trained networks, and return what it prints last."""
    files = []
    for task in TASKS:
        expert(work, ARCH, task, 0, epochs=20, sketch=False)
        files.append(str(work / f"{ARCH.replace(':', '-')}-0-{task}.pt"))
    found = subprocess.run(
        [sys.executable, "-c", code, *files, *words], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(found.stdout.splitlines()[-1])


def limits(ways: dict[str, tuple[int, int]]) -> dict[str, int]:
    """Return a limit in bytes for each way that some limit leads to."""
    found: dict[str, int] = {}
    before = sys.maxsize
    for words, (least, single) in ways.items():
        if least < before:  # or a smaller form comes earlier
            found[words] = min(least + (INPUTS - 1) * single, (least + before) // 2)
            before = least
    return found


def merged(work: Path, limit: int | None) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        given = "" if limit is None else f"{limit}B"
        measured: dict[str, Any] = child(work, MERGE, f"{folder}/run", given)
    if limit is not None:
        measured |= {"limit": limit, "kept": measured["peak"] <= limit}
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows = Rows(arguments.work / "memory-limit.json")
    rows.row("none", partial(merged, arguments.work, None))
    for words, limit in limits(child(arguments.work, PLAN)).items():
        rows.row(words, partial(merged, arguments.work, limit))
    write_results("memory_limit.json", {"limits": rows.done})


if __name__ == "__main__":
    main()
