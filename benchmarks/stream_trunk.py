"""Class-incremental Split CIFAR-10 on frozen trunks: heads from class statistics and baselines.

    python benchmarks/stream_trunk.py --work build/bench --data data

The trunks are a ResNet20 that was trained on the classes airplane to deer and has never seen the
other five (its last cells pooled to 2 x 2: 256 features), and a VGG11 that was trained on all ten
(512 features). Every row has the same features of the training images; five tasks of two classes in
an order drawn by the seed. Strengths are chosen on a fifth of the training images of each task;
numbers are of the test images. The joint head is the linear layer trained on all tasks at once.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Rows, write_results
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import geomerge as gm
from geomerge.data.sources import NAMED

sys.path.insert(0, str(Path(__file__).parent))
from nets import resnet20

from geomerge.networks.architectures.small import VggCifar

MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
TASKS, CLASSES, HELD_OUT, RANDOM = 5, 10, 5, 1500
STRENGTHS = (1e-3, 1e-2, 0.1, 1.0, 10.0)
Parts = list[tuple[Tensor, Tensor]]  # features and labels of each task


def resnet_features(data: Path) -> nn.Module:
    model = resnet20()
    model.load_state_dict(gm.load_checkpoint(data / "resnet20-cifar/airplane-to-deer.pt").weights)
    cells = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())

    def features(x: Tensor) -> Tensor:
        found: list[Tensor] = []
        hook = model.layer3.register_forward_hook(lambda *a: found.append(a[2]))
        model(x)
        hook.remove()
        return cells(found[0])

    return _Function(model, features)


def vgg_features(data: Path) -> nn.Module:
    model = VggCifar()
    model.load_state_dict(gm.load_checkpoint(data / "vgg11_cifar10.pt").weights)
    return nn.Sequential(model.features, nn.Flatten())


class _Function(nn.Module):
    def __init__(self, model: nn.Module, function: Any) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.function(x)
        return out


TRUNKS = {"ResNet20 of five classes": resnet_features, "VGG11 of all ten": vgg_features}


@torch.no_grad()
def measured(trunk: nn.Module, x: Tensor) -> Tensor:
    """Return the features of images in bytes."""
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, DEVIATION))
    batches = [(b.float() / 255 - mean) / deviation for b in x.split(500)]
    return torch.cat([trunk.eval()(b) for b in batches])


def features(name: str, data: Path, work: Path, per_class: int) -> dict[str, Tensor]:
    """Return features of training and test images, measured once."""
    cache = work / f"trunk-{name.replace(' ', '-')}-{per_class}.pt"
    if not cache.exists():
        (x, y), (tx, ty) = NAMED["cifar10"](data, False)
        rows = torch.cat([(y == c).nonzero().flatten()[:per_class] for c in range(CLASSES)])
        trunk = TRUNKS[name](data)
        torch.save({
            "x": measured(trunk, x[rows]), "y": y[rows], "tx": measured(trunk, tx), "ty": ty,
        }, cache)  # fmt: skip
    found: dict[str, Tensor] = torch.load(cache)
    return found


def tasks(found: dict[str, Tensor], seed: int) -> tuple[Parts, Parts]:
    """Return tasks of two classes, drawn by the seed: all training features, and test features."""
    order = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(seed))
    train, test = (
        [
            (found[x][rows], found[y][rows])
            for pair in order.chunk(TASKS)
            if len(rows := torch.isin(found[y], pair).nonzero().flatten())
        ]
        for x, y in (("x", "y"), ("tx", "ty"))
    )
    return train, test


def geodesic(train: Parts, test: Parts, seed: int) -> dict[str, float]:
    from geomerge.strategies import GeodesicMerge
    from geomerge.strategies.avalanche import (
        EvaluationPlugin,
        TextLogger,
    )

    torch.manual_seed(seed)
    width = train[0][0].shape[1]
    model = nn.Sequential(nn.Linear(width, CLASSES))
    mine = GeodesicMerge(
        model=model, optimizer=torch.optim.SGD(model.parameters(), 0.01), head="discriminant",
        train_mb_size=500, train_epochs=1,
        evaluator=EvaluationPlugin(loggers=[TextLogger(io.StringIO())]),
    )  # fmt: skip
    for experience in stream(train):
        mine.train(experience)
    return {"accuracy": accuracy(model, test), "megabytes": mine.memory_bytes / 1e6}


def stream(train: Parts) -> Any:
    """Return the tasks as experiences of Avalanche."""
    import geomerge.strategies.avalanche  # noqa: F401, I001 - it quietens the other's imports
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import as_classification_dataset

    made = []
    for x, y in train:
        dataset = TensorDataset(x, y)
        dataset.targets = y.tolist()  # type: ignore[attr-defined]
        made.append(as_classification_dataset(dataset))
    return benchmark_from_datasets(train=made).train_stream


def nearest_mean(train: Parts, test: Parts, seed: int) -> dict[str, float]:
    means = {int(c): x[y == c].mean(0) for x, y in train for c in y.unique()}
    points = torch.stack([means[c] for c in range(CLASSES)])
    return {
        "accuracy": accuracy(lambda x: -torch.cdist(x, points), test),
        "megabytes": points.nbytes / 1e6,
    }


def fecam(train: Parts, test: Parts, seed: int) -> dict[str, float]:
    """Distance in the correlations of each class's features (Goswami et al., NeurIPS 2023)."""

    def learned(parts: Parts, strength: float) -> Any:
        own = {}
        for x, y in parts:
            for c in y.unique().tolist():
                f = x[y == c].double().clamp(min=0).sqrt()  # Tukey's transformation
                cov = torch.cov(f.T)
                cov.diagonal().add_(strength * cov.diagonal().mean())
                scale = cov.diagonal().rsqrt()
                own[c] = f.mean(0), torch.linalg.inv(scale[:, None] * cov * scale)

        def scores(x: Tensor) -> Tensor:
            found = []
            for c in range(CLASSES):
                mean, inverse = own[c]
                gap = x.double().clamp(min=0).sqrt() - mean
                found.append(-((gap @ inverse) * gap).sum(1))
            return torch.stack(found, 1)

        return scores

    scores = chosen(learned, train, seed)
    width = train[0][0].shape[1]
    return {"accuracy": accuracy(scores, test), "megabytes": 2 * CLASSES * width * width / 1e6}


def ranpac(train: Parts, test: Parts, seed: int) -> dict[str, float]:
    """Ridge regression on random features with ReLU (McDonnell et al., NeurIPS 2023)."""
    width = train[0][0].shape[1]
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(width, RANDOM, generator=generator)
    scale = torch.cat([x for x, _ in train]).std()

    def raised(x: Tensor) -> Tensor:
        return (x / scale @ wide / width**0.5).relu().double()

    def learned(parts: Parts, strength: float) -> Any:
        gram = torch.zeros(RANDOM, RANDOM, dtype=torch.float64)
        sums = torch.zeros(RANDOM, CLASSES, dtype=torch.float64)
        for x, y in parts:
            h = raised(x)
            gram += h.T @ h
            sums += h.T @ nn.functional.one_hot(y, CLASSES).double()
        gram.diagonal().add_(strength * gram.diagonal().mean())
        weight = torch.linalg.solve(gram, sums)
        return lambda x: raised(x) @ weight

    scores = chosen(learned, train, seed)
    size = 2 * RANDOM * RANDOM + 4 * RANDOM * CLASSES
    return {"accuracy": accuracy(scores, test), "megabytes": size / 1e6}


def joint_head(train: Parts, test: Parts, seed: int) -> dict[str, float]:
    x = torch.cat([p[0] for p in train])
    mean, scale = x.mean(0), x.std(0) + 1e-6

    def learned(parts: Parts, rate: float) -> Any:
        torch.manual_seed(seed)
        f = (torch.cat([p[0] for p in parts]) - mean) / scale
        own = torch.cat([p[1] for p in parts])
        head = nn.Linear(f.shape[1], CLASSES)
        optimizer = torch.optim.SGD(head.parameters(), 0.1 * rate, momentum=0.9)
        epochs = 30
        for k in range(epochs):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * rate * (1 - k / epochs)
            for rows in torch.randperm(len(f)).split(128):
                optimizer.zero_grad()
                nn.functional.cross_entropy(head(f[rows]), own[rows]).backward()
                optimizer.step()
        return lambda z: head((z - mean) / scale)

    return {"accuracy": accuracy(chosen(learned, train, seed), test), "megabytes": 0.0}


def chosen(learned: Any, train: Parts, seed: int) -> Any:
    """Return what is learned with the strength that is best on a fifth of the training features."""
    kept, out = [], []
    for x, y in train:
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        cut = len(y) // HELD_OUT
        out.append((x[order[:cut]], y[order[:cut]]))
        kept.append((x[order[cut:]], y[order[cut:]]))
    best = max(STRENGTHS, key=lambda s: accuracy(learned(kept, s), out))
    return learned(train, best)


@torch.no_grad()
def accuracy(scores: Any, parts: Parts) -> float:
    """Return the accuracy over all classes."""
    right = [int((scores(x).argmax(1) == y).sum()) for x, y in parts]
    return sum(right) / sum(len(y) for _, y in parts)


ROWS = {
    "geodesic": geodesic, "nearest mean": nearest_mean, "FeCAM": fecam, "RanPAC": ranpac,
    "joint head": joint_head,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10 and trunks")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--per-class", type=int, default=1000, help="training images of a class")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", module="avalanche")
    table: dict[str, dict[str, Any]] = {}
    for name in TRUNKS:
        found = features(name, given.data, given.work, given.per_class)
        rows = Rows(given.work / f"stream-trunk-{name.replace(' ', '-')}-{given.per_class}.json")
        for title, learn in ROWS.items():
            for seed in given.seeds:
                rows.row(f"{title} {seed}", partial(learn, *tasks(found, seed), seed))
            own = [rows.done[f"{title} {seed}"] for seed in given.seeds]
            table.setdefault(name, {})[title] = {
                "accuracy": statistics.mean(row["accuracy"] for row in own),
                "seeds": [row["accuracy"] for row in own],
                "megabytes": own[0]["megabytes"],
            }
    write_results(
        "stream_trunk.json",
        {"images of a class": given.per_class, "seeds": given.seeds, "table": table},
    )


if __name__ == "__main__":
    main()
