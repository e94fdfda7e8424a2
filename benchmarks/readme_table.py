"""Write the numbers of benchmarks/results/ into the README, between its two markers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- table: make readme -->", "<!-- end of table -->"


def table(results: dict[str, Any], timing: dict[str, Any]) -> str:
    """Return the table as Markdown: MNIST / Fashion-MNIST test accuracies."""
    arches = list(results["table"])
    names = list(dict.fromkeys(name for arch in arches for name in results["table"][arch]))
    lines = [
        "| | " + " | ".join(arches) + " |",
        "|---|" + "---|" * len(arches),
    ]
    for name in names:
        cells = []
        for arch in arches:
            row = results["table"][arch].get(name)
            cells.append("{:.1f} / {:.1f}".format(*row["mean"]) if row else "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    ratios = [f"{timing['timing'][arch]['ratio']:.2f}" for arch in arches]
    lines.append("| time of one walk / of training one expert | " + " | ".join(ratios) + " |")
    return "\n".join(lines)


def rendered(readme: str) -> str:
    """Return the README with the table as the results have it."""
    results, timing = (
        json.loads((ROOT / "benchmarks" / "results" / name).read_text())
        for name in ("merge.json", "merge_timing.json")
    )
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table(results, timing)}\n{END}{after}"


if __name__ == "__main__":
    file = ROOT / "README.md"
    file.write_text(rendered(file.read_text()))
