"""Training of two vit-cifar from different initialisations on halves of CIFAR-10.

    python benchmarks/train_vit_cifar.py --work build/bench --out build/bench/vit-cifar-1 --seed 1

Three epochs of AdamW with flips and shifted crops, on the first 4500 images of each class of the
half, for ``vit_cifar.py``. Images are 16 pixels wide, means of four pixels, which takes a quarter
of the time; ``--side 32`` keeps them as they are. ``seconds.json`` has the side, and the processor
time of each training.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from resnet20 import FILES, cifar10, task
from torch import Tensor
from train_resnet20 import fit

from geomerge.data import Task
from geomerge.networks.architectures.transformer import VisionTransformer

BATCH, RATE, DECAY = 64, 1e-3, 0.05
PATCH, CLASSES = 4, 5


def pooled_cifar10(work: Path, side: int) -> dict[str, Tensor]:
    """Return CIFAR-10 as of ``resnet20.cifar10``, with images of a side of 32, 16 or 8 pixels."""
    data = cifar10(work)
    if side == 32:
        return data
    pool = torch.nn.AvgPool2d(32 // side)
    for name in ("x", "tx"):
        parts = (pool(part.float()).round().byte() for part in data[name].split(5000))
        data[name] = torch.cat(list(parts)).contiguous()
    return data


def train(data: Task, seed: int, epochs: int, side: int) -> VisionTransformer:
    torch.manual_seed(seed)
    # Without dropout, in two thirds of the time.
    model = VisionTransformer(3, (side // PATCH) ** 2, CLASSES).eval()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    fit(model, optimizer, data, seed, epochs, BATCH, side // 8)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--side", type=int, choices=(8, 16, 32), default=16)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    data, seconds = pooled_cifar10(given.work, given.side), {}
    for half, (file, classes) in enumerate(FILES.items()):
        began = time.process_time()
        model = train(task(data, classes), 2 * given.seed + half, given.epochs, given.side)
        seconds[file] = time.process_time() - began
        torch.save(model.state_dict(), given.out / file)
    said = {"epochs": given.epochs, "side": given.side, **seconds}
    (given.out / "seconds.json").write_text(json.dumps(said))
    print(said)


if __name__ == "__main__":
    main()
