"""Peak memory of whole merges under --memory, beside the same merge without a limit.

    python benchmarks/memory_limit.py --work build/bench

MNIST and Fashion-MNIST in the CNN, few steps, each merge in a process of its own. Linux only.
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

LIMITS = (None, "1.25GB")
CODE = """
import json, resource, sys
from pathlib import Path
from geomerge import MergeOptions
from geomerge.expert_options import DataOptions
from geomerge.runs import run_merge
files, out, limit = sys.argv[1:3], sys.argv[3], sys.argv[4] or None
options = MergeOptions(damping=1e-3, steps=20, memory=limit)
_, report, _ = run_merge(files, options, DataOptions(manifold=("mnist",)), out=out)
peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
row = next(r for r in report["results"] if r["name"] == "crossover")
said = [note for note in report["notes"] if note.startswith("`memory`")]
print(json.dumps({"peak": peak, "select": row["select"], "chosen": said}))
"""


def peak(work: Path, limit: str | None) -> dict[str, Any]:
    files = []
    for k, task in enumerate(("mnist", "fashion-mnist")):
        expert(work, "cnn", task, 1000 * k, epochs=3)
        files.append(str(work / f"cnn-{1000 * k}-{task}.pt"))
    with TemporaryDirectory() as folder:
        found = subprocess.run(
            [sys.executable, "-c", CODE, *files, f"{folder}/run", limit or ""],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    measured: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    if limit is not None:
        measured["peak / limit"] = measured["peak"] / (1e9 * float(limit.removesuffix("GB")))
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows = Rows(arguments.work / "memory-limit.json")
    for limit in LIMITS:
        rows.row(limit or "none", partial(peak, arguments.work, limit))
    write_results("memory_limit.json", {"limits": rows.done})


if __name__ == "__main__":
    main()
