"""Merges in feature space: a head from class statistics beside any network and head."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("avalanche")

from avalanche.benchmarks import nc_benchmark
from avalanche.logging import TextLogger
from avalanche.models import IncrementalClassifier, as_multitask
from avalanche.training.plugins import EvaluationPlugin
from torch.utils.data import TensorDataset

from geomerge.errors import OptionError
from geomerge.strategies import (
    GeodesicMerge,
    QuarterTurns,
    maybe_load_checkpoint,
    save_strategy,
)

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified:UserWarning")


def images(seed: int, count: int = 240) -> TensorDataset:
    """Six classes of textures whose mean image says nothing."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 6
    patterns = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(9)).repeat(
        1, 1, 2, 2
    )
    sign = torch.randint(0, 2, (count, 1, 1, 1), generator=generator) * 2.0 - 1
    x = sign * patterns[y] + 0.5 * torch.randn(count, 3, 8, 8, generator=generator)
    dataset = TensorDataset(x, y)
    dataset.targets = y.tolist()  # type: ignore[attr-defined]
    return dataset


def benchmark(task_labels: bool = False, count: int = 3) -> Any:
    return nc_benchmark(
        images(0), images(1), n_experiences=count, task_labels=task_labels, seed=0,
        class_ids_from_zero_in_each_exp=task_labels,
    )  # fmt: skip


class Net(nn.Module):
    def __init__(self, norm: str = "group", classifier: nn.Module | None = None) -> None:
        super().__init__()

        def normed(n: int) -> nn.Module:
            return nn.BatchNorm2d(n) if norm == "batch" else nn.GroupNorm(2, n)

        self.trunk = nn.Sequential(
            nn.Conv2d(3, 16, 3, 1, 1), normed(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, 2, 1), normed(16), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.classifier = nn.Linear(64, 6) if classifier is None else classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.classifier(self.trunk(x))
        return out


def strategy(model: nn.Module, **changes: Any) -> GeodesicMerge:
    words: dict[str, Any] = {
        "head": "discriminant", "train_mb_size": 20, "train_epochs": 3, "eval_mb_size": 100,
        "evaluator": EvaluationPlugin(loggers=[TextLogger(io.StringIO())]),
    }  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return GeodesicMerge(model=model, optimizer=optimizer, **(words | changes))


def accuracy(model: nn.Module, stream: Any, task_labels: bool = False) -> float:
    right = total = 0
    model.eval()
    for k, experience in enumerate(stream):
        x = torch.stack([row[0] for row in experience.dataset])
        y = torch.tensor([int(row[1]) for row in experience.dataset])
        with torch.no_grad():
            out = model(x, k) if task_labels else model(x)
        right += int((out.argmax(1) == y).sum())
        total += len(y)
    return right / total


@pytest.mark.parametrize("kind", ["group", "batch", "growing", "heads", "heads, batch"])
def test_the_model_is_the_answer(kind: str) -> None:
    torch.manual_seed(0)
    heads = kind.startswith("heads")
    model: nn.Module = Net("batch" if kind.endswith("batch") else "group")
    if kind == "growing":
        model = Net(classifier=IncrementalClassifier(64, 2))
    if heads:
        model = as_multitask(model, "classifier")
    mine = strategy(model)
    made = benchmark(heads)
    for experience in made.train_stream:
        mine.train(experience)
    assert accuracy(model, made.test_stream, heads) > 0.8
    report = mine.merge_reports[-1]
    assert len(mine.merge_reports) == 2
    assert set(report.stored) == {"metric", "statistics"}
    assert sum(report.stored.values()) == mine.memory_bytes == report.memory["all tasks"]
    assert report.pick.new <= min(point.new for point in report.path)
    assert all(p.requires_grad for p in model.parameters())


def test_frozen_features_have_exact_statistics_in_any_order() -> None:
    torch.manual_seed(0)
    trunk = Net().trunk
    accuracies = []
    for seed in (0, 3):
        model = Net()
        model.trunk.load_state_dict(trunk.state_dict())
        model.trunk.requires_grad_(False)
        before = {name: t.clone() for name, t in model.trunk.state_dict().items()}
        mine = strategy(model, train_epochs=1)
        made = nc_benchmark(images(0), images(1), n_experiences=3, task_labels=False, seed=seed)
        for experience in made.train_stream:
            mine.train(experience)
        for name, t in model.trunk.state_dict().items():
            assert torch.equal(t, before[name])
        assert mine.features.metric is None
        accuracies.append(accuracy(model, made.test_stream))
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.02)


def test_lower_layers_stay_after_the_first_experience() -> None:
    torch.manual_seed(0)
    model = Net()
    mine = strategy(model, moving=0.5)
    first, second = benchmark().train_stream[:2]
    mine.train(first)
    before = model.trunk[0].weight.clone()
    mine.train(second)
    assert torch.equal(model.trunk[0].weight, before)


def test_views_of_images_are_in_the_statistics_and_count_as_no_examples() -> None:
    found = []
    for views in ("none", "shifted", "mirrored"):
        torch.manual_seed(0)
        mine = strategy(Net(), views=views)
        mine.train(benchmark().train_stream[0])
        assert mine.features is not None
        assert mine.features.statistics.counts.tolist() == [40, 40]
        found.append(mine.features.statistics.means)
    assert not any(torch.equal(found[i], found[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_memory_keeps_its_promise_and_says_what_it_needs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mine = strategy(Net(), memory_mb=0.012)
    for experience in benchmark().train_stream:
        mine.train(experience)
        assert mine.memory_bytes <= 12_000
    model = Net()
    small = strategy(model, memory_mb=0.0001)
    with pytest.raises(OptionError, match=r"of 2 classes needs .* raise `memory_mb`"):
        small.train(benchmark().train_stream[0])
    assert small.features is None
    assert small.clock.train_iterations == 0


@pytest.mark.parametrize("kind", ["usual", "quarter turns", "waiting"])
def test_a_run_goes_on_from_a_checkpoint_with_the_same_bits(tmp_path: Path, kind: str) -> None:
    made = benchmark(count=6 if kind == "waiting" else 3).train_stream

    def make() -> GeodesicMerge:
        torch.manual_seed(0)
        turned = [QuarterTurns()] if kind == "quarter turns" else []
        every = 2 if kind == "waiting" else 1
        return strategy(Net("batch"), evaluator=None, plugins=turned, merge_every=every)

    whole = make()
    torch.manual_seed(1)
    for experience in made:
        whole.train(experience)
    part, first = make(), len(made) // 2 + len(made) % 2
    torch.manual_seed(1)
    for experience in made[:first]:
        part.train(experience)
    assert part.merger.waiting == (kind == "waiting")
    save_strategy(part, tmp_path / "part.pt")
    resumed, done = maybe_load_checkpoint(make(), tmp_path / "part.pt")
    assert done == first
    for experience in made[done:]:
        resumed.train(experience)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    assert len(resumed.merge_reports) == len(whole.merge_reports) == 2


@pytest.mark.parametrize(
    ("model", "changes", "part"),
    [
        (Net(classifier=nn.Linear(64, 6, bias=False)), {}, "has no bias"),
        (
            nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            {},
            "calls none",
        ),
        (Net(), {"classifier": "clasifier"}, "did you mean 'classifier'"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    model: nn.Module, changes: dict[str, Any], part: str
) -> None:
    mine = strategy(model, **changes)
    with pytest.raises(OptionError, match=part):
        mine.train(benchmark().train_stream[0])
    assert mine.clock.train_iterations == 0


def test_the_head_is_chosen_by_how_pseudo_inputs_do() -> None:
    torch.manual_seed(0)
    mine = strategy(Net(), head="auto", train_epochs=1)
    heavy = images(0, 1800)
    x, y = heavy.tensors
    far = TensorDataset(x**3, y)  # what a Gaussian draws is much nearer to the mean
    far.targets = y.tolist()  # type: ignore[attr-defined]
    more = nc_benchmark(far, far, n_experiences=3, task_labels=False, seed=0)
    for experience in more.train_stream[:2]:
        mine.train(experience)
    assert mine.features is not None
    assert "the head is the discriminant" in mine.merge_reports[0].notes[0]
    labels = torch.arange(400) % 4
    dataset = TensorDataset(torch.randn(400, 8) + 2 * torch.eye(8)[torch.arange(400) % 4], labels)
    dataset.targets = labels.tolist()  # type: ignore[attr-defined]
    blobs = nc_benchmark(dataset, dataset, n_experiences=2, task_labels=False, seed=0)
    other = strategy(nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 4)), head="auto")
    other.train(blobs.train_stream[0])
    assert other.features is None
