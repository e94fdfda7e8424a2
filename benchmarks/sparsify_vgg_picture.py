"""Picture docs/vgg11.png from results/sparsify_vgg.json: figures 2A, 2B and 2D of the paper.

python benchmarks/sparsify_vgg_picture.py
"""

from __future__ import annotations

import json
from pathlib import Path

from common import RESULTS
from matplotlib.figure import Figure

TRAINED = "one by one, trained on the dense outputs, equal cost"


def main() -> None:
    rows = json.loads((RESULTS / "sparsify_vgg.json").read_text())["table"]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    accuracy, epochs, moves = figure.subplots(1, 3)
    for name, style in (("walk", "k-o"), (TRAINED, "k--s")):
        curve = rows[name]["curve"]
        gone = [point["removed"] for point in curve]
        label = name if name == "walk" else "one by one, trained in between"
        accuracy.plot(gone, [point["test"] for point in curve], style, ms=4, label=label)
        epochs.plot(gone, [point["epochs"] for point in curve], style, ms=4, label=label)
    for axes, title in (
        (accuracy, "Test accuracy (%), 1000 images"),
        (epochs, "Epoch equivalents spent"),
    ):
        axes.set(title=title, xlabel="first-layer filters removed, of 64")
        axes.legend(frameon=False, fontsize=8)

    configurations = [("C1", rows["dense"]["test"], None)]
    configurations.append(("C2", rows["walk"]["test"], rows["smallest filters cut out"]["test"]))
    configurations += [(m["name"], m["test"], m["cut_out"]) for m in rows["C3 and C4"]]
    names = [name for name, _, _ in configurations]
    moves.plot(names, [walked for _, walked, _ in configurations], "k-o", label="walked")
    moves.plot(
        names[1:], [cut for _, _, cut in configurations[1:]], "k--s", mfc="w", label="just cut out"
    )
    moves.set(title="Test accuracy (%) along the plan", ylim=(0, 100))
    moves.legend(frameon=False, fontsize=8)
    for axes in (accuracy, epochs, moves):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.savefig(Path(__file__).parent.parent / "docs" / "vgg11.png", dpi=110)


if __name__ == "__main__":
    main()
