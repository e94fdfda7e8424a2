"""Write the numbers of benchmarks/results/ into the README, between its markers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / name).read_text())
    return found


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(values: list[float]) -> str:
    return " / ".join(f"{v:.1f}" for v in values)


def merge() -> str:
    """MNIST / Fashion-MNIST test accuracies, by network."""
    results, timing = read("merge.json")["table"], read("merge_timing.json")["timing"]
    names = list(dict.fromkeys(name for rows in results.values() for name in rows))
    table = []
    for name in names:
        found = [rows.get(name) for rows in results.values()]
        table.append([name, *(percent(row["mean"]) if row else "-" for row in found)])
    ratios = [f"{timing[arch]['ratio']:.2f}" if arch in timing else "-" for arch in results]
    table.append(["time of one walk / of training one expert", *ratios])
    return markdown(["", *results], table)


def heads() -> str:
    """Pairs of tasks under the head protocols."""
    results = read("heads.json")["table"]
    table = []
    for pair, rows in results.items():
        first = next(iter(rows.values()))
        table.append([pair, "the two networks alone", percent(first["experts"]), ""])
        for name, row in rows.items():
            table.append(["", name, percent(row["mean"]), f"{row['worst_drop']:.1f}"])
    return markdown(["tasks", "head, walk", "test", "worst drop"], table)


def three() -> str:
    """Three networks in one."""
    results = read("three_networks.json")
    table = [[name, percent(row["mean"])] for name, row in results["table"].items()]
    return markdown(["", " / ".join(results["tasks"])], table)


def cifar() -> str:
    """Halves of CIFAR-10, one head each."""
    table = []
    for net, rows in read("cifar.json")["table"].items():
        first = next(iter(rows.values()))
        table.append([net.removeprefix("nets:"), "the two networks alone",
                      percent([100 * v for v in first["experts"]])])  # fmt: skip
        for name, row in rows.items():
            table.append(["", name, percent([100 * v for v in row["balanced"]])])
    return markdown(["network", "head, walk", "classes 0-4 / 5-9"], table)


def sparsify() -> str:
    """LeNet-300-100 on MNIST: one column per sparsity."""
    rows = read("sparsify.json")["table"]
    levels = ["70 %", "90 %", "95 %", "98 %"]
    names = [name.partition(": ")[2] for name in rows if name.startswith("98 %: ")]
    table = [["dense", *[f"{rows['dense']['mean']:.2f}"] * len(levels)]]
    for name in names:
        found = [rows.get(f"{level}: {name}") for level in levels]
        table.append([name, *(f"{row['mean']:.2f}" if row else "-" for row in found)])
    return markdown(["", *levels], table)


def sparsify_few() -> str:
    """The same with a thousand inputs."""
    rows = read("sparsify.json")["table"]
    few = {name: row for name, row in rows.items() if "inputs: " in name}
    table = [[name.partition(": ")[2], f"{row['mean']:.2f}"] for name, row in few.items()]
    return markdown(["1000 inputs, 98 %", "test"], table)


def sparsify_vgg() -> str:
    """VGG11 on CIFAR-10."""
    rows = dict(read("sparsify_vgg.json")["table"])
    moves = rows.pop("C3 and C4", [])
    table = [[name, f"{r['test']:.2f}", f"{r['epochs']:.2f}"] for name, r in rows.items()]
    for move in moves:
        table.append([f"{move['name']}, walked", f"{move['test']:.2f}", f"{move['epochs']:.2f}"])
        table.append([f"{move['name']}, just cut out", f"{move['cut_out']:.2f}", "0.00"])
    return markdown(["", "test", "epochs"], table)


TABLES: dict[str, Callable[[], str]] = {
    "merge": merge, "heads": heads, "three": three, "cifar": cifar,
    "sparsify": sparsify, "sparsify few": sparsify_few, "sparsify vgg": sparsify_vgg,
}  # fmt: skip


def rendered(readme: str) -> str:
    """Return the README with its tables as the results have them."""
    for name, table in TABLES.items():
        begin, end = f"<!-- table {name}: make readme -->", f"<!-- end of table {name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if pattern.search(readme) is None:
            raise SystemExit(f"the README has no markers for the table {name}")
        whole = f"{begin}\n{table()}\n{end}"
        readme = pattern.sub(lambda _, whole=whole: whole, readme)
    return readme


if __name__ == "__main__":
    file = ROOT / "README.md"
    file.write_text(rendered(file.read_text()))
