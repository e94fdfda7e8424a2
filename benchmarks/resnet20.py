"""Halves of CIFAR-10 in one ResNet20, with separate and offset heads.

    python benchmarks/resnet20.py --work build/bench --networks data/resnet20-cifar \
        build/bench/resnet20-1

A pair of networks lies in each folder, of the development data or of ``train_resnet20.py``. The two
networks were trained from different initialisations on the first 4500 images of each of
their classes; 200 of the last 500 of each select (balanced), the test images report. Inputs have
no labels, except in the rows of fine-tuning and joint training, which are there for reference.
These and distillation have their default learning rates and as many samples as the joint walk and
its metric take together; both walks start at the mean of the aligned networks. With *shifts and
flips* the images of every batch of a walk are changed at random, and both networks answer for all
of them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import Rows, write_results
from torch import Tensor
from torch.nn.functional import cross_entropy

import geomerge as gm
from geomerge.comparison.context import Context
from geomerge.comparison.methods.walks import walk_and_pick
from geomerge.comparison.registry import METHODS, Make, MethodResult
from geomerge.data import Normalisation, Task
from geomerge.data.batchnorm import re_estimate, statistics_gap
from geomerge.data.sources import NAMED
from geomerge.data.surrogates import surrogate_inputs
from geomerge.errors import Problems
from geomerge.evaluation.accuracy import accuracy, share_right
from geomerge.evaluation.pick import parse_pick
from geomerge.merging.choice import choose_preset, choose_rule
from geomerge.merging.joint_training import joint_samples, round_samples
from geomerge.merging.prepare import PreparedMerge, prepare
from geomerge.merging.recording import Monitor, Recorder
from geomerge.merging.stages import walk_plan
from geomerge.networks.batches import concat
from geomerge.options import replace_options
from geomerge.walks.objectives import random_batches
from geomerge.weight_space import WeightSpace

sys.path.insert(0, str(Path(__file__).parent))
from nets import resnet20

FILES = {"airplane-to-deer.pt": range(5), "dog-to-truck.pt": range(5, 10)}
USUAL = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
TRAINED = 4500  # images of each class that the networks saw
SELECTED = 200  # images of each class in the selection split
FEW = 1000
JOINT_BATCH, JOINT_RATE = 128, 0.05  # those of joint training, as in ``geomerge train``
POINTS = 8  # stored points of a walk, all of which are picked from
ALIGN = ("none", "weights", "activations")
# Head, inputs of each network (None: all 22500) and steps of the joint walk by table.
CASES: dict[str, tuple[str, int | None, int]] = {
    "separate heads, all inputs": ("separate", None, 50),
    "separate heads, all inputs, long": ("separate", None, 250),
    "separate heads, 1000 inputs each": ("separate", FEW, 50),
    "separate heads, 1000 inputs each, long": ("separate", FEW, 150),
    "separate heads, 1000 inputs each, shifts and flips": ("separate", FEW, 250),
    "separate heads, 1000 inputs each, shifts and flips, long": ("separate", FEW, 750),
    "separate heads, inputs of one": ("separate", None, 100),
    "offset head, all inputs": ("offset", None, 50),
}
# Further rows of ``geomerge compare``; fine-tuning and joint training have labels.
ROWS: dict[str, tuple[str, ...]] = {
    "separate heads, all inputs, long": ("zipit", "fine-tuning", "joint-training"),
    "separate heads, 1000 inputs each": ("zipit",),
    "offset head, all inputs": ("ensemble", "zipit", "fine-tuning", "joint-training"),
}
WALKS = ("joint-walk", "distillation")
AUGMENTED = (
    "separate heads, 1000 inputs each, shifts and flips",
    "separate heads, 1000 inputs each, shifts and flips, long",
)
ONE = "separate heads, inputs of one"  # of the other the weights, or a sketch
ROUNDED = ("separate heads, all inputs, long",)  # walked in bfloat16 as well


def experts(networks: Path, work: Path, inputs: int | None) -> list[gm.Expert]:
    """Return the two networks with some of their unlabelled inputs; None is all."""
    data, found = cifar10(work), []
    for file, classes in FILES.items():
        own = gm.Expert.load(networks / file, task(data, classes, chosen=SELECTED), arch=resnet20)
        assert own.inputs is not None
        found.append(own if inputs is None else replace(own, inputs=own.inputs.first(inputs)))
    return found


def cifar10(work: Path) -> dict[str, Tensor]:
    """Return training images and labels, x and y, and those of the test split, tx and ty."""
    cache = work / "cifar10.pt"
    if not cache.exists():
        (x, y), (tx, ty) = NAMED["cifar10"](Path(os.environ["GEOMERGE_DATA"]), False)
        torch.save({"x": x, "y": y, "tx": tx, "ty": ty}, cache)
    found: dict[str, Tensor] = torch.load(cache)
    # A CPU trains on images with the channels last in a quarter less time, and batches keep it.
    return {
        k: v.contiguous(memory_format=torch.channels_last) if v.dim() == 4 else v
        for k, v in found.items()
    }


def task(
    data: dict[str, Tensor],
    classes: range,
    images: int | None = None,
    device: str = "cpu",
    chosen: int = 500,
) -> Task:
    """Return the task of some classes, its selection split without images seen in training.

    Args:
        data: CIFAR-10.
        classes: Classes of the task.
        images: Number of images of a class in each split, for trials; None takes all.
        device: Device of the batches.
        chosen: Number of images of a class in the selection split.
    """
    seen, free = [], []
    for label in classes:
        index = (data["y"] == label).nonzero()[:, 0]
        seen.append(index[:TRAINED][:images])
        free.append(index[TRAINED:][:chosen])
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


def mean(both: Sequence[gm.Expert], head: str, align: str) -> dict[str, Any]:
    """Return the test accuracies of the mean of the weights, statistics measured again (REPAIR)."""
    space = prepared(both, head, align).space
    return measured(space, space.settle(space.middle()))


def prepared(both: Sequence[gm.Expert], head: str, align: str | None) -> PreparedMerge:
    made = prepare(both, gm.MergeOptions(head=head, align=align), Problems(strict=True))
    assert made is not None
    return made


def measured(space: WeightSpace, w: Tensor) -> dict[str, Any]:
    """Return test accuracies with common statistics and, for known tasks, with own ones."""
    found = {"test": [accuracy(e.network, w, e.task.test) for e in space if e.task]}
    if space.head == "separate" and space.bn is not None:
        own = [re_estimate(space.network, w, [e.inputs]) for e in space if e.inputs]
        pairs = zip(space, own, strict=True)
        found["statistics per task"] = [
            accuracy(e.network, v, e.task.test) for e, v in pairs if e.task
        ]
    return found


def row(
    both: Sequence[gm.Expert],
    head: str,
    name: str,
    steps: int,
    align: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Return a row of ``geomerge compare``: test accuracies, samples, seconds of one core."""
    made = prepare(
        both, gm.MergeOptions(head=head, align=align, steps=steps, points=POINTS, **options),
        Problems(strict=True),
    )  # fmt: skip
    assert made is not None
    own = {e.name: e.accuracy("select") for e in made.space}
    samples = joint_samples(made.space, steps)
    context = Context(made, parse_pick("balanced", own), samples)
    began = time.process_time()
    found = OWN.get(name, METHODS[name].make)(context)
    seconds = time.process_time() - began
    if isinstance(found.answer, Tensor):
        scores = measured(made.space, found.answer)
    else:
        scores = {
            "test": [
                share_right(partial(found.answer, e), e.task.test) for e in made.space if e.task
            ]
        }
    return {
        **scores, "samples": found.samples, "chosen": dict(found.chosen), "seconds": seconds,
    }  # fmt: skip


def distilled(context: Context, preset: str = "joint") -> MethodResult:
    """Walk without a metric, for as many samples as the joint walk and its metric take.

    The row of ``geomerge compare`` spends three tenths of these on trials of learning rates.

    Args:
        context: Context of the comparison.
        preset: Preset, which says where the walk starts.
    """
    steps = context.max_samples // round_samples(context.space)
    changes = {"preset": preset, "metric": "euclidean", "steps": steps}
    return walk_and_pick(context, replace_options(context.options, **changes), "distillation")


def jointly_trained(context: Context) -> MethodResult:
    """Train a new network with both heads on the labels of both tasks.

    The row of ``geomerge compare`` is for a shared head; learning rate and batch size are its own.
    A batch has as many images of each task, with the outputs that are known to be possible.

    Args:
        context: Context of the comparison.
    """
    space, half = context.space, JOINT_BATCH // 2
    splits = [context.labelled(expert) for expert in space]
    orders = [random_batches(len(split.labels), half, context.seed) for split in splits]
    torch.manual_seed(context.seed)
    module = resnet20(space.network.shapes["fc.weight"][0])
    module.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(module.parameters(), momentum=0.9)
    steps = context.max_samples // JOINT_BATCH
    for step in range(steps):
        places = [next(order) for order in orders]
        both = [split.inputs.batch(at) for split, at in zip(splits, places, strict=True)]
        outputs = module(concat(both)).split(half)
        losses = [
            cross_entropy(out[:, expert.network.columns], split.labels[at])
            for expert, out, split, at in zip(space, outputs, splits, places, strict=True)
        ]
        optimizer.param_groups[0]["lr"] = JOINT_RATE * (1 - step / steps)
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    w = space.network.ravel({**dict(module.named_parameters()), **dict(module.named_buffers())})
    return MethodResult(w, samples=steps * JOINT_BATCH)


# Rows that are made here in another way than by ``geomerge compare``.
OWN: dict[str, Make] = {"distillation": distilled, "joint-training": jointly_trained}


def rows_file(work: Path, networks: Path, name: str, kind: str = "resnet20") -> Path:
    """Return the file of the rows of a table of one pair of a kind of network."""
    return work / f"{kind}-{networks.name}-{name.replace(', ', '-').replace(' ', '-')}.json"


def with_inputs_of_one(
    both: Sequence[gm.Expert], blind: int, preset: str, steps: int, augment: str | None = None
) -> dict[str, Any]:
    """Return the test accuracies of a walk without inputs of one network, picked by equal drift.

    Args:
        both: Networks.
        blind: Place of the one of which the walk has no inputs, and no task to pick by.
        preset: Preset; ``sketch`` has its sketch of 2000 inputs.
        steps: Steps of the walk toward each function.
        augment: Change of the images.
    """
    one = both[blind].with_sketch() if preset == "sketch" else both[blind]
    experts = [replace(one, inputs=None, task=None) if e is both[blind] else e for e in both]
    options = gm.MergeOptions(
        head="separate", preset=preset, steps=steps, points=POINTS, augment=augment
    )
    made = prepare(experts, options, Problems(strict=True))
    assert made is not None
    began = time.process_time()
    chosen = choose_preset(made)
    with TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder), Monitor(chosen.space), POINTS)
        (picked,) = walk_plan(chosen, choose_rule(chosen), recorder)
        networks = zip(chosen.space, both, strict=True)
        test = [accuracy(e.network, picked.w, own.task.test) for e, own in networks if own.task]
        step = picked.chosen.step
    return {
        "test": test, "chosen": {"step": float(step)}, "seconds": time.process_time() - began,
    }  # fmt: skip


def gaps(both: Sequence[gm.Expert]) -> dict[str, list[float]]:
    """Return how far images are from those of each network, by its running statistics."""
    found: dict[str, list[float]] = {"own images": [], "images of the other": [], "noise": []}
    for expert, other in zip(both, both[::-1], strict=True):
        assert expert.inputs is not None
        assert other.inputs is not None
        noise = surrogate_inputs(expert.network, expert.weights, other.inputs, seed=0)
        for kind, inputs in zip(found, (expert.inputs, other.inputs, noise), strict=True):
            found[kind].append(statistics_gap(expert.network, expert.weights, inputs))
    return found


def measure_case(name: str, networks: Path, given: argparse.Namespace) -> None:
    """Measure the rows of a table of one pair that are not known yet."""
    head, inputs, steps = CASES[name]
    both = experts(networks, given.work, inputs)
    augment = "flips" if name in AUGMENTED else None
    rows = Rows(rows_file(given.work, networks, name))
    known = gaps(both) if name == ONE and "experts" not in rows.done else {}
    rows.row("experts", lambda: {"test": [expert.accuracy() for expert in both], **known})
    if name == ONE:
        for title, preset, change in (
            ("joint walk", "joint-auxiliary", None),
            ("sketch walk", "sketch", None),
            ("joint walk, shifts and flips", "joint-auxiliary", "flips"),
        ):
            for blind, letter in enumerate("ab"):
                make = partial(with_inputs_of_one, both, blind, preset, steps, change)
                rows.row(f"{title}, no inputs of {letter}", make)
        return
    if not given.means:
        for method in WALKS:
            rows.row(method, partial(row, both, head, method, steps, augment=augment))
    if name in ROUNDED:
        low = partial(row, both, head, "joint-walk", steps, precision="bfloat16")
        rows.row("joint-walk in bfloat16", low)
    for method in ROWS.get(name, ()):
        rows.row(method, partial(row, both, head, method, steps))
    for align in ALIGN:
        rows.row(f"mean, align {align}", partial(mean, both, head, align))
    for align in ("none", "activations"):
        rows.row(f"RegMean, align {align}", partial(row, both, head, "regmean", steps, align))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--networks", type=Path, nargs="+", required=True)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--means", action="store_true", help="no walks, the means alone")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    for pair in given.networks:
        for name in given.cases:
            measure_case(name, pair, given)
    write_tables("resnet20", CASES, given.networks, given.work)


def write_tables(kind: str, cases: Mapping[str, Any], pairs: Sequence[Path], work: Path) -> None:
    """Write the rows of all pairs that are known, those of earlier calls too."""
    tables, seconds = {}, {}
    for pair in pairs:
        files = {name: rows_file(work, pair, name, kind) for name in cases}
        known = [name for name, file in files.items() if file.exists()]
        tables[pair.name] = {name: json.loads(files[name].read_text()) for name in known}
        if (pair / "seconds.json").exists():  # of the trainings
            seconds[pair.name] = json.loads((pair / "seconds.json").read_text())
    found = {"seed": 0, "cases": cases, "training": seconds, "tables": tables}
    write_results(f"{kind.replace('-', '_')}.json", found)


if __name__ == "__main__":
    main()
