"""Training of two ResNet20 of different initialisation on halves of CIFAR-10, for ``resnet20.py``.

    python benchmarks/train_resnet20.py --work build/bench --out build/bench/resnet20-1 --seed 1

Twenty epochs of SGD with Nesterov momentum, flips and shifted crops, on the first 4500 images of
each class of the half. ``seconds.json`` has the processor time of each training.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from resnet20 import FILES, USUAL, cifar10, resnet20, task
from torch import Tensor

from geomerge.data import Task
from geomerge.data.changed_images import changed_images

BATCH, RATE, DECAY, SHIFT = 128, 0.1, 5e-4, 4


def augmented(x: Tensor, generator: torch.Generator, most: int = SHIFT) -> Tensor:
    """Shift every image by up to ``most`` pixels and flip half of them."""
    down, right = torch.randint(2 * most + 1, (2, len(x), 1), generator=generator) - most
    flipped = torch.rand(len(x), 1, generator=generator) < 0.5
    # A CPU trains on images with the channels last in a quarter less time.
    return changed_images(x, down, right, flipped).contiguous(memory_format=torch.channels_last)


def train(
    data: Task, seed: int, epochs: int, make: Callable[[], torch.nn.Module] = resnet20
) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = make().train().to(memory_format=torch.channels_last)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": DECAY}, {"params": rest}
    ]  # fmt: skip
    optimizer = torch.optim.SGD(groups, RATE, momentum=0.9, nesterov=True)
    fit(model, optimizer, data, seed, epochs, BATCH, SHIFT)
    return model.eval()


def fit(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Task,
    seed: int,
    epochs: int,
    batch: int,
    most: int,
) -> None:
    """Train on flipped images that are shifted by up to ``most`` pixels, at one cycle of rates."""
    split = data.train
    images, labels = split.inputs.raw, split.labels
    assert isinstance(images, Tensor)
    center, spread = (torch.tensor(x)[:, None, None] * 255 for x in (USUAL.mean, USUAL.std))
    batches = len(labels) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, optimizer.defaults["lr"], total_steps=epochs * batches, pct_start=0.15
    )
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        order = torch.randperm(len(labels), generator=generator)[: batches * batch]
        total = 0.0
        for index in order.split(batch):
            x = augmented((images[index] - center) / spread, generator, most)
            loss = torch.nn.functional.cross_entropy(model(x), labels[index])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch} loss {total / batches:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=20)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    data, seconds = cifar10(given.work), {}
    for half, (file, classes) in enumerate(FILES.items()):
        began = time.process_time()
        model = train(task(data, classes), 2 * given.seed + half, given.epochs)
        seconds[file] = time.process_time() - began
        state = {name: x.contiguous() for name, x in model.state_dict().items()}
        torch.save(state, given.out / file)
    (given.out / "seconds.json").write_text(json.dumps({"epochs": given.epochs, **seconds}))
    print(seconds)


if __name__ == "__main__":
    main()
