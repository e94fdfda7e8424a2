"""Halves of CIFAR-10 in one wide ResNet20, trained and merged on a GPU within ten minutes.

    python benchmarks/gpu_cifar.py --work build/bench
    python benchmarks/gpu_cifar.py --work build/try --device cpu --width 1 --epochs 1 --images 20

Two ResNet20 of width 4 with different initialisation are trained on classes 0-4 and 5-9 (SGD with
a one-cycle learning rate, shifts and flips, passes in bfloat16 on a GPU) and merged with separate
and with offset heads, on all training inputs of both halves without labels. The last 500 training
images of each class are the selection split, by which points are picked (balanced); the test images
report. The rows of ``geomerge compare`` have as many samples as the joint walk. ZipIt is published
for this setting: .905 of the ensemble of both when everything is merged, .959 when half of it is.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Rows, write_results
from torch import nn

import geomerge as gm
from geomerge.comparison import CompareOptions, compare

sys.path.insert(0, str(Path(__file__).parent))
from nets import resnet20
from resnet20 import cifar10, task
from train_resnet20 import augmented

HALVES = (range(5), range(5, 10))
RATE, MOMENTUM, DECAY, BATCH = 0.2, 0.9, 5e-4, 256
ROWS = (
    "average", "weight-matching", "activation-matching", "zipit", "regmean", "distillation",
    "joint-walk",
)  # fmt: skip
HEADS = {"separate": ROWS, "offset": ("ensemble", *ROWS)}


def trained(own: gm.Task, width: int, epochs: int, seed: int, device: str) -> nn.Module:
    """Train a network on a half.

    Args:
        own: Half of CIFAR-10.
        width: Factor of the network's channels.
        epochs: Number of epochs.
        seed: Seed of the initialisation and of the order of images.
        device: Device of the training.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    module = resnet20(5, width).to(device)
    x, y = own.train.inputs.batch(slice(None)), own.train.labels.to(device)
    optimizer = torch.optim.SGD(
        module.parameters(), RATE, MOMENTUM, weight_decay=DECAY, nesterov=True
    )
    steps = -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps * epochs)
    half = device != "cpu"
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=generator).split(BATCH):
            with torch.autocast(device, torch.bfloat16, enabled=half):
                logits = module(augmented(x[index], generator))
            loss = nn.functional.cross_entropy(logits.float(), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return module.eval()


def merged(experts: list[gm.Expert], head: str, name: str, steps: int) -> dict[str, Any]:
    """Return the test accuracies of a row of the comparison."""
    began = time.perf_counter()
    options = CompareOptions(gm.MergeOptions(head=head, steps=steps), only=(name,))
    (row,) = compare(experts, options).rows
    if row.result is None:
        return {"reason": row.reason}
    return {
        "test": list(row.test.values()),
        "samples": row.result.samples,
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--steps", type=int, default=300, help="steps of the joint walk")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--images", type=int, help="images of a class, for a trial; default all")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    data = cifar10(given.work)
    for seed in given.seeds:
        rows = Rows(given.work / f"gpu-cifar-{given.width}-{seed}.json")
        experts, began = [], time.perf_counter()
        for k, classes in enumerate(HALVES):
            own = task(data, classes, given.images, given.device)
            file = given.work / f"resnet20x{given.width}-{seed}-{k}.pt"
            if not file.exists():
                module = trained(own, given.width, given.epochs, 2 * seed + k, given.device)
                torch.save(module.state_dict(), file)
            module = resnet20(5, given.width)
            module.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
            experts.append(gm.Expert.from_module(module, own, name="ab"[k], device=given.device))
        print(f"two networks after {time.perf_counter() - began:.0f} s", flush=True)
        rows.row("experts", lambda e=experts: {"test": [expert.accuracy() for expert in e]})
        for head, names in HEADS.items():
            for name in names:
                rows.row(f"{head}, {name}", partial(merged, experts, head, name, given.steps))
        if given.images is None:
            machine = torch.cuda.get_device_name() if given.device == "cuda" else given.device
            write_results("gpu_cifar.json", {
                "device": machine, "width": given.width, "epochs": given.epochs,
                "steps": given.steps, "seed": seed, "table": rows.done,
            })  # fmt: skip


if __name__ == "__main__":
    main()
