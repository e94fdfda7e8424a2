"""Training of two VGG11 of different initialisation on non-IID shares of CIFAR-10.

    python benchmarks/train_vgg11.py --work build/bench --out build/bench/vgg11-0 --seed 0

The first 4500 training images of each class are divided among the two networks in proportions that
a Dirichlet distribution draws for each class (arXiv 2507.00037). SGD as in ``train_resnet20.py``.
``seconds.json`` has the processor time of each training.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from nets import vgg11
from resnet20 import SELECTED, TRAINED, USUAL, cifar10
from torch import Tensor
from train_resnet20 import train

from geomerge.data import Task

CLASSES = 10
CONCENTRATION = 0.5
FILES = ("first.pt", "second.pt")


def shares(labels: Tensor, seed: int) -> list[Tensor]:
    """Return the indices of the two networks' training images, in random order.

    Args:
        labels: Labels of all training images.
        seed: Seed of proportions and orders.
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[list[Tensor]] = [[], []]
    for label in range(CLASSES):
        index = (labels == label).nonzero()[:TRAINED, 0]
        index = index[torch.randperm(TRAINED, generator=generator)]
        # Gamma variates over their sum: torch's Dirichlet takes no generator.
        gamma = torch._standard_gamma(torch.full((2,), CONCENTRATION), generator=generator)
        cut = round(float(gamma[0] / gamma.sum()) * TRAINED)
        for part, own in zip(found, (index[:cut], index[cut:]), strict=True):
            part.append(own)
    joined = [torch.cat(part) for part in found]
    return [part[torch.randperm(len(part), generator=generator)] for part in joined]


def tasks(data: dict[str, Tensor], seed: int) -> list[Task]:
    """Return the tasks of both shares, whose selection and test splits are of all classes.

    Args:
        data: CIFAR-10.
        seed: Seed of the shares.
    """
    y = data["y"]
    free = torch.cat([(y == label).nonzero()[TRAINED:, 0][:SELECTED] for label in range(CLASSES)])
    return [
        Task.from_tensors(
            data["x"][index], y[index], select=(data["x"][free], y[free]),
            test=(data["tx"], data["ty"]), name=f"share-{k}", normalisation=USUAL,
        )
        for k, index in enumerate(shares(y, seed))
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the shares and the networks")
    parser.add_argument("--epochs", type=int, default=10)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    seconds = {}
    both = tasks(cifar10(given.work), given.seed)
    for k, (file, share) in enumerate(zip(FILES, both, strict=True)):
        began = time.process_time()
        model = train(share, 2 * given.seed + k, given.epochs, vgg11)
        seconds[file] = time.process_time() - began
        state = {name: x.contiguous() for name, x in model.state_dict().items()}
        torch.save(state, given.out / file)
        (given.out / "seconds.json").write_text(
            json.dumps({"epochs": given.epochs, "seed": given.seed, **seconds})
        )


if __name__ == "__main__":
    main()
