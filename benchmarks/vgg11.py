"""VGG11 on CIFAR-10: two networks of non-IID shares in one head, and fine-tunes of halves.

    python benchmarks/train_vgg11.py --work build/bench --out build/bench/vgg11-0 --seed 0
    python benchmarks/vgg11.py --work build/bench --networks build/bench/vgg11-0
    python benchmarks/vgg11.py --work build/bench --base data/vgg11_cifar10.pt

``--networks``: two networks of ``train_vgg11.py``, which differ in initialisation and in the shares
of each class, merged into one ten-way head with 200 unlabelled inputs of each share. Selection and
test splits are those of all classes; points are picked by accuracy on the selection split. Inputs
of *flips and shifts* are these 400 images, changed at random as in training. Distillation has its
default learning rate and as many samples as the joint walk and its metric.

``--base``: the VGG11 of the development data, which has seen all training images, fine-tuned on
halves of the classes with a head of its own each, trained first. Merged without data by sketches,
and with a few unlabelled inputs; nothing is chosen on labels.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import fine_tunes
import resnet20
import torch
from common import RESULTS, Rows, write_results
from nets import vgg11
from resnet20 import FILES as HALVES
from resnet20 import USUAL, cifar10
from torch import Tensor, nn
from train_resnet20 import augmented
from train_vgg11 import FILES, tasks

import geomerge as gm
from geomerge.comparison.context import Context
from geomerge.comparison.methods.walks import walk_and_pick
from geomerge.comparison.registry import MethodResult, method
from geomerge.data import Task
from geomerge.merging.joint_training import joint_samples
from geomerge.merging.prepare import PreparedMerge
from geomerge.merging.presets.base import Start
from geomerge.merging.presets.joint import JointPreset
from geomerge.merging.presets.registry import preset
from geomerge.networks.architectures import create_network
from geomerge.options import replace_options

INPUTS = 200  # unlabelled inputs of each share
COPIES = 25  # of each of them, flipped and shifted
STEPS = 40  # of each teacher in the joint walks of shares
WALKS = ("joint-walk", "joint-walk-from-mean", "distillation", "distillation-from-mean")
# Of the fine-tunes of halves.
TUNED = 600  # images of each class
RATE = 2e-4
HEAD = "classifier.6"
SKETCHED = 500
FEW = (64, 256)
TURNS = 10  # steps of each teacher in their joint walks
TESTED = 1000  # test images of each half
DATA_FREE = (
    "average", "task arithmetic", "TIES", "Fisher, diagonal", "Kronecker mean (sketches)",
)  # fmt: skip


@preset("joint-from-mean")
class FromMean(JointPreset):
    """The joint walk from the mean, where a network may be the better start."""

    about = "joint, from the mean of all in any case"
    preference = None

    def starts(self) -> Iterator[Start]:
        """Yield the mean alone."""
        yield from islice(super().starts(), 1)


@method("joint-walk-from-mean", "walks", "joint walk from the mean")
def from_mean(context: Context) -> MethodResult:
    """Walk as the joint walk does."""
    found = walk_and_pick(context, replace_options(context.options, preset=FromMean.name))
    return replace(found, samples=joint_samples(context.space, context.options.walk.steps))


@method("distillation-from-mean", "walks", "the same without a metric")
def distilled_from_mean(context: Context) -> MethodResult:
    """Walk without a metric for as many samples, from the mean."""
    return resnet20.distilled(context, FromMean.name)


def expert(file: Path, task: Task, copies: int) -> gm.Expert:
    """Return a network of a share that may see a few of its inputs.

    Args:
        file: Weights.
        task: Task of the share.
        copies: Number of flipped and shifted copies of each input; 0 takes the inputs themselves.
    """
    few = task.train.first(INPUTS)
    if copies:
        generator = torch.Generator().manual_seed(0)
        center = torch.tensor(USUAL.mean)[:, None, None] * 255
        raw = few.inputs.raw
        assert isinstance(raw, Tensor)
        images = augmented(raw.repeat(copies, 1, 1, 1) - center, generator) + center
        inputs = replace(few.inputs, raw=images.round().byte())
        few = replace(few, inputs=inputs, labels=few.labels.repeat(copies))
    return gm.Expert.load(file, replace(task, train=few), arch=vgg11)


def shares(networks: Path, work: Path) -> dict[str, Any]:
    """Measure merges of two networks of non-IID shares; one accuracy a row, of all classes."""
    training = json.loads((networks / "seconds.json").read_text())
    both = tasks(cifar10(work), training["seed"])
    counts = [torch.bincount(task.train.labels).tolist() for task in both]
    rows = Rows(work / f"vgg11-{networks.name}.json")
    files = [networks / file for file in FILES]
    plain = [expert(file, task, 0) for file, task in zip(files, both, strict=True)]
    changed = [expert(file, task, COPIES) for file, task in zip(files, both, strict=True)]
    rows.row("parents", lambda: {"test": [one.accuracy() for one in plain]})
    made = partial(resnet20.row, head="shared", steps=STEPS)
    rows.row("ensemble", lambda: made(plain, name="ensemble"))
    for align in resnet20.ALIGN:
        rows.row(f"mean, align {align}", lambda align=align: resnet20.mean(plain, "shared", align))
    for name in WALKS:
        rows.row(f"{name}, flips and shifts", lambda name=name: made(changed, name=name))
    rows.row("joint-walk-from-mean", lambda: made(plain, name="joint-walk-from-mean"))
    for align in ("none", "activations"):
        rows.row(
            f"RegMean, align {align}",
            lambda align=align: made(plain, name="regmean", align=align),
        )
    rows.row("zipit", lambda: made(plain, name="zipit"))
    return {"training": training, "counts": counts, "table": rows.done}


def tuned(file: Path, base: nn.Module, halves: list[Task], seed: int) -> list[nn.Module]:
    """Return the fine-tunes of a base, with a new head each, trained unless they lie in the file.

    Args:
        file: File of the fine-tunes; their times lie beside it.
        base: Base, with ten outputs.
        halves: Tasks.
        seed: Seed of heads, orders and changes of images.
    """
    modules = []
    for k in range(len(halves)):
        module = create_network("vgg11-cifar", (3, 32, 32), 5, seed + k)
        head = {f"{HEAD}.{name}" for name in ("weight", "bias")}
        kept = {name: x for name, x in base.state_dict().items() if name not in head}
        module.load_state_dict(kept, strict=False)
        modules.append(module.eval().to(memory_format=torch.channels_last))
    if not file.exists():
        seconds = []
        for k, (module, task) in enumerate(zip(modules, halves, strict=True)):
            began = time.process_time()
            split = task.train
            x, y = split.inputs.batch(slice(0, len(split.labels))), split.labels
            assert isinstance(x, Tensor)
            generator = torch.Generator().manual_seed(seed + k)
            fine_tunes.train_head(module, x, y, seed + k, lambda images: images)
            change = partial(augmented, generator=generator)
            fine_tunes.trained(module.train(), x, y, RATE, seed + k, change)
            seconds.append(time.process_time() - began)
            print(f"fine-tune {k}, {seconds[-1]:.0f} s", flush=True)
        torch.save([module.state_dict() for module in modules], file)
        file.with_suffix(".seconds.json").write_text(json.dumps(seconds))
    for module, state in zip(modules, torch.load(file, weights_only=True), strict=True):
        module.load_state_dict(state)
    return [module.eval().to(memory_format=torch.contiguous_format) for module in modules]


def of_half(data: dict[str, Tensor], classes: range) -> Task:
    """Return the task of a half, with the images that fine-tunes are trained and tested on."""
    whole = resnet20.task(data, classes)
    train = whole.train.first(TUNED * len(classes))
    return replace(whole, train=train, test=whole.test.sample(TESTED))


def halves(base_file: Path, work: Path, seed: int) -> dict[str, Any]:
    """Fine-tune a base on halves of the classes, and measure merges with separate heads."""
    module = create_network("vgg11-cifar", (3, 32, 32), 10, 0)
    state = torch.load(base_file, weights_only=True)
    module.load_state_dict({k: x.float() if x.is_floating_point() else x for k, x in state.items()})
    data = cifar10(work)
    both = [of_half(data, classes) for classes in HALVES.values()]
    file = work / f"vgg11-halves-{seed}.pt"
    modules = tuned(file, module, both, seed)
    rows = Rows(work / f"vgg11-halves-{seed}.json")
    base = gm.Expert.from_module(module.eval(), inputs=False)
    experts = [gm.Expert.from_module(m, t) for m, t in zip(modules, both, strict=True)]
    rows.row("networks alone", lambda: {"test": [one.accuracy() for one in experts]})
    began = time.process_time()
    sketched = [one.with_sketch(inputs=SKETCHED) for one in experts]
    seconds = time.process_time() - began
    rows.row("sketches", lambda: {"seconds": seconds})
    free = fine_tunes.prepared([fine_tunes.blind(one) for one in sketched], base)
    blind = fine_tunes.data_free(free)
    made = {name: blind[name] for name in DATA_FREE}
    for count in FEW:
        see = partial(fine_tunes.seeing, sketched, base, count)
        made[f"RegMean, {count} inputs"] = partial(see, fine_tunes.regmean)
        made[f"joint walk, sketches and {count} inputs"] = partial(
            see, fine_tunes.joint, steps=TURNS, preset="joint"
        )
    for name, make in made.items():
        rows.row(name, partial(merged, free, both, make))
    training = json.loads(file.with_suffix(".seconds.json").read_text())
    return {"training": training, "table": rows.done}


def merged(
    case: PreparedMerge, own: list[Task], make: Callable[[], Tensor]
) -> dict[str, list[float] | float]:
    """Return the test accuracies of a merge, and the seconds of one core that it took."""
    began = time.process_time()
    w = make()
    seconds = time.process_time() - began
    return {"test": fine_tunes.tested(case, own, w), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--networks", type=Path, help="folder of two networks of shares")
    parser.add_argument("--base", type=Path, help="the trained VGG11")
    parser.add_argument("--seed", type=int, default=0, help="of the fine-tunes")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    file = RESULTS / "vgg11.json"
    found = json.loads(file.read_text()) if file.exists() else {}  # of the other case
    if given.networks is not None:
        found["shares"] = shares(given.networks, given.work)
    if given.base is not None:
        found["halves"] = halves(given.base, given.work, given.seed)
    settings = {
        "inputs": INPUTS, "copies": COPIES, "steps": STEPS, "tuned": TUNED, "sketched": SKETCHED,
        "turns": TURNS, "tested": TESTED,
    }  # fmt: skip
    write_results("vgg11.json", {**found, "settings": settings})


if __name__ == "__main__":
    main()
