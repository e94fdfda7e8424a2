"""Halves of CIFAR-10 in one ResNet20 with two heads, with and without alignment.

The joint walk and distillation see a thousand unlabelled inputs of each half.

    python benchmarks/resnet20.py --work build/bench --networks data/resnet20-cifar

The two networks were trained from different initialisations on the first 4500 images of each of
their classes; the last 500 of each select (balanced), the test images report. Distillation has as
many samples as the walk and its metric take together.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import Rows, write_results
from torch import Tensor

import geomerge as gm
from geomerge.data import Normalisation, Task
from geomerge.data.batchnorm import re_estimate
from geomerge.data.sources import NAMED
from geomerge.errors import Problems
from geomerge.evaluation.accuracy import accuracy
from geomerge.evaluation.pick import parse_pick
from geomerge.merging.choice import choose_preset
from geomerge.merging.prepare import PreparedMerge, prepare
from geomerge.merging.recording import Monitor, Recorder
from geomerge.merging.stages import walk_plan

sys.path.insert(0, str(Path(__file__).parent))
from nets import resnet20

FILES = {"airplane-to-deer.pt": range(5), "dog-to-truck.pt": range(5, 10)}
USUAL = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
TRAINED = 4500  # images of each class that the networks saw
INPUTS = 1000
STEPS = 30
ALIGN = ("none", "weights", "activations")


def experts(networks: Path, work: Path) -> list[gm.Expert]:
    """Return the two networks with a thousand inputs each."""
    data, found = cifar10(work), []
    for file, classes in FILES.items():
        own = gm.Expert.load(networks / file, task(data, classes), arch=resnet20)
        assert own.inputs is not None
        found.append(replace(own, inputs=own.inputs.first(INPUTS)))
    return found


def cifar10(work: Path) -> dict[str, Tensor]:
    """Return training images and labels, x and y, and those of the test split, tx and ty."""
    cache = work / "cifar10.pt"
    if not cache.exists():
        (x, y), (tx, ty) = NAMED["cifar10"](Path(os.environ["GEOMERGE_DATA"]), False)
        torch.save({"x": x, "y": y, "tx": tx, "ty": ty}, cache)
    found: dict[str, Tensor] = torch.load(cache)
    return found


def task(
    data: dict[str, Tensor], classes: range, images: int | None = None, device: str = "cpu"
) -> Task:
    """Return the task of some classes, its selection split without images seen in training.

    Args:
        data: CIFAR-10.
        classes: Classes of the task.
        images: Number of images of a class in each split, for trials; None takes all.
        device: Device of the batches.
    """
    seen, free = [], []
    for label in classes:
        index = (data["y"] == label).nonzero()[:, 0]
        seen.append(index[:TRAINED][:images])
        free.append(index[TRAINED:])
    train, select = torch.cat(seen), torch.cat(free)
    train = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))]
    test = torch.isin(data["ty"], torch.tensor(classes)).nonzero()[:, 0]
    if images is not None:
        select, test = select[:: max(1, 500 // images)], test[: images * len(classes)]
    return Task.from_tensors(
        data["x"][train], data["y"][train] - classes[0],
        select=(data["x"][select], data["y"][select] - classes[0]),
        test=(data["tx"][test], data["ty"][test] - classes[0]),
        name=f"cifar10@{classes[0]}-{classes[-1]}", normalisation=USUAL, device=device,
    )  # fmt: skip


def prepared(both: Sequence[gm.Expert], **options: Any) -> PreparedMerge:
    made = prepare(both, gm.MergeOptions(head="separate", **options), Problems(strict=True))
    assert made is not None
    return made


def mean(both: Sequence[gm.Expert], align: str) -> dict[str, Any]:
    """Return the accuracies of the mean of the weights, with common and with own statistics."""
    space = prepared(both, align=align).space
    w = space.middle()
    inputs = [e.inputs for e in space if e.inputs is not None]
    common = re_estimate(space.network, w, inputs)
    own = [re_estimate(space.network, w, [x]) for x in inputs]
    return {
        "test": [accuracy(e.network, common, e.task.test) for e in space if e.task],
        "statistics per task": [
            accuracy(e.network, v, e.task.test) for e, v in zip(space, own, strict=True) if e.task
        ],
    }


def walk(both: Sequence[gm.Expert], **options: Any) -> dict[str, Any]:
    """Return the accuracies of the crossover of a joint walk."""
    preset = choose_preset(prepared(both, **options))
    own = {e.name: e.accuracy("select") for e in preset.space}
    with TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder), Monitor(preset.space), 16)
        *_, last = walk_plan(preset, parse_pick("balanced", own), recorder)
    return {
        "test": [accuracy(e.network, last.w, e.task.test) for e in preset.space if e.task],
        "step": last.chosen.step,
        "notes": [note for note in preset.prepared.notes if "`align`" in note],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--networks", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--means", action="store_true", help="no walks, the means alone")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    both, steps = experts(given.networks, given.work), given.steps
    rows = Rows(given.work / f"resnet20-{steps}.json")
    rows.row("experts", lambda: {"test": [expert.accuracy() for expert in both]})
    for align in ALIGN:
        rows.row(f"mean, align {align}", partial(mean, both, align))
    # Two measurements of the metric on both tasks' inputs are as many samples as eight steps.
    more = 2 * 2 * INPUTS // (2 * 256) + 1
    for align in () if given.means else ("none", "activations"):
        rows.row(f"joint walk, align {align}", partial(walk, both, align=align, steps=steps))
        rows.row(
            f"distillation, align {align}",
            partial(walk, both, align=align, steps=steps + more, metric="euclidean"),
        )
    content = {"inputs": INPUTS, "steps": steps, "seed": 0, "table": rows.done}
    write_results("resnet20.json", content)


if __name__ == "__main__":
    main()
