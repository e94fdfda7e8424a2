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


def compare() -> str:
    """Every method of the comparison, by the worst drop."""
    table = read("compare.json")["table"]
    found = {name: r for name, r in table.items() if "reason" not in r}

    def used(r: dict[str, Any]) -> str:
        parts = [("inputs", "inputs"), ("labels", "labels"), ("sketch", "sketches")]
        return ", ".join(f"{name} {'+'.join(r[key])}" for name, key in parts if r[key]) or "-"

    rows = [
        [
            name, percent(list(r["test"].values())), f"{r['drop']:.1f}", used(r),
            f"{r['samples'] / 1000:.0f}k",
        ]
        for name, r in sorted(found.items(), key=lambda item: item[1]["drop"])
    ]  # fmt: skip
    return markdown(["", "test", "worst drop", "of the training data", "samples"], rows)


STREAMS = {
    "permuted_10": "Permuted MNIST, 10 tasks, two layers of 100, 5 epochs a task",
    "permuted_20": "Permuted MNIST, 20 tasks, two layers of 100, 1 epoch; ours walks on labels",
    "mnist_fashion": "MNIST, then Fashion-MNIST, one 10-way head, two layers of 400, 8 epochs",
    "split_domain": "Split MNIST, domain-incremental, two layers of 400, 5 epochs",
    "split_class": "Split MNIST, class-incremental, two layers of 400, 5 epochs",
}


def continual() -> str:
    """Streams of tasks, those that have results."""
    parts = []
    for name, title in STREAMS.items():
        if not (ROOT / "benchmarks" / "results" / f"continual_{name}.json").exists():
            continue
        rows = read(f"continual_{name}.json")["table"]
        table = [[row, *stream_row(r, name == "mnist_fashion")] for row, r in rows.items()]
        head = ["", "accuracy", "transfer", "forgetting", "MB", "examples", "passes", "s"]
        ratio = rows["geodesic"]["merge by expert"]
        timed = "" if ratio is None else f"\n\nMerge / training of the expert: {ratio:.2f}."
        parts.append(f"**{title}**\n\n{markdown(head, table)}{timed}")
    return "\n\n".join(parts)


def stream_row(r: dict[str, Any], each: bool) -> list[str]:
    """Return a row's cells: the mean over tasks, with ``each`` both of them."""
    if "accuracy" not in r:
        return ["diverged"] + ["-"] * 6
    mean = f"{100 * r['accuracy']:.2f}"
    if each:
        mean += " (" + ", ".join(f"{100 * task:.1f}" for task in r["tasks"]) + ")"
    return [
        mean + (f", {r['diverged']} seed(s) diverged" if r["diverged"] else ""),
        share(r["backward_transfer"]),
        share(r["forgetting"]),
        f"{r['megabytes']:.1f}",
        f"{r['examples']:.0f}",
        f"{r['passes']:.1f}",
        f"{r['seconds']:.0f}",
    ]


def share(value: float | None) -> str:
    """Return a share in per cent, or a dash."""
    return "-" if value is None else f"{100 * value:.2f}"


TABLES: dict[str, Callable[[], str]] = {
    "merge": merge, "heads": heads, "three": three, "cifar": cifar,
    "sparsify": sparsify, "sparsify few": sparsify_few, "sparsify vgg": sparsify_vgg,
    "continual": continual, "compare": compare,
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
