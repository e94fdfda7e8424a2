"""Streams of other kinds: online, with repetition, of unequal tasks; schedulers, autocast."""

from __future__ import annotations

import io
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("avalanche")

from avalanche.benchmarks import (
    benchmark_from_datasets,
    nc_benchmark,
    with_classes_timeline,
    with_task_labels,
)
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.logging import TextLogger
from avalanche.models import MultiHeadClassifier, MultiTaskModule, as_multitask
from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin
from torch.utils.data import TensorDataset

from geomerge.errors import NumericalError, OptionError
from geomerge.options import replace_options
from geomerge.strategies import (
    GeodesicMerge,
    GeodesicMergePlugin,
    feature_merger,
    merge_metrics,
    merger,
)
from geomerge.strategies.avalanche import Naive

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified:UserWarning")

CENTRES = 4 * torch.eye(6)


def blobs(classes: dict[int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return as many inputs of each class as is said."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.cat([torch.full((count,), c) for c, count in classes.items()])
    y = y[torch.randperm(len(y), generator=generator)]
    return CENTRES[y] + torch.randn(len(y), 6, generator=generator), y


def stream(*tasks: dict[int, int]) -> Any:
    datasets = []
    for k, classes in enumerate(tasks):
        x, y = blobs(classes, k)
        dataset = TensorDataset(x, y)
        dataset.targets = y.tolist()  # type: ignore[attr-defined]
        datasets.append(as_classification_dataset(dataset))
    return benchmark_from_datasets(train=datasets).train_stream


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 6))


def strategy(model: nn.Module, **changes: Any) -> GeodesicMerge:
    words: dict[str, Any] = {
        "pseudo_inputs": 200, "train_mb_size": 16, "train_epochs": 3,
        "evaluator": EvaluationPlugin(loggers=[TextLogger(io.StringIO())]),
    }  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return GeodesicMerge(model=model, optimizer=optimizer, **(words | changes))


def accuracy(model: nn.Module, classes: range) -> float:
    x, y = blobs(dict.fromkeys(classes, 50), 99)
    return float((model.eval()(x).argmax(dim=1) == y).double().mean())


@pytest.mark.parametrize("head", ["trained", "discriminant"])
@pytest.mark.parametrize(
    "tasks",
    [
        ({0: 90, 1: 90}, {1: 60, 2: 90}, {0: 30, 3: 90}, {2: 40, 3: 40}),  # with repetition
        ({0: 200, 1: 150, 2: 150}, {3: 40}),  # one class, and few examples of it
    ],
    ids=["repetition", "unequal"],
)
def test_classes_come_again_alone_and_in_other_numbers(
    head: str, tasks: tuple[dict[int, int], ...]
) -> None:
    model = network()
    mine = strategy(model, head=head)
    for experience in stream(*tasks):
        mine.train(experience)
    assert accuracy(model, range(4)) > 0.85
    if head == "discriminant":
        counts = dict(
            zip(mine.features.statistics.keys, mine.features.statistics.counts, strict=True)
        )
        assert {c: int(n) for (_, c), n in counts.items()} == {
            c: sum(task.get(c, 0) for task in tasks) for c in range(4)
        }


@pytest.mark.parametrize("head", ["trained", "discriminant"])
def test_an_online_stream_is_merged_after_several_experiences(head: str) -> None:
    model = network()
    mine = strategy(model, head=head, merge_every=5, train_epochs=1, expert_init="first")
    online = split_online_stream(
        stream({0: 80, 1: 80}, {2: 80, 3: 80}), experience_size=32, drop_last=False
    )
    kept = []
    for experience in online:
        mine.train(experience)
        kept.append(mine.merger.memory_bytes)
    assert len(mine.merge_reports) == 1  # of ten experiences, the first five are not merged
    assert kept[3] == 4 * 32 * (6 * 4 + 8)
    assert mine.merger.waiting == 0
    assert mine.merge_reports[0].used["inputs"] == 160
    assert accuracy(model, range(4)) > 0.7
    with pytest.raises(OptionError, match="give `merge_every`"):
        strategy(network()).train(next(iter(online)))


def test_what_waits_is_merged_on_demand() -> None:
    mine = strategy(network(), merge_every=3)
    for experience in stream({0: 40, 1: 40}, {2: 40}, {3: 40}, {4: 40}):
        mine.train(experience)
    assert (len(mine.memory), mine.merger.waiting) == (1, 1)
    mine.merge()
    assert (len(mine.memory), mine.merger.waiting) == (2, 0)
    mine.merge()  # nothing waits
    assert len(mine.memory) == 2


def two_tasks(count: int) -> Any:
    """Return experiences of two classes each, with a task label."""
    x, y = blobs(dict.fromkeys(range(4), count))
    dataset = TensorDataset(x, y)
    dataset.targets = y.tolist()  # type: ignore[attr-defined]
    made = nc_benchmark(
        dataset,
        dataset,
        n_experiences=2,
        task_labels=True,
        shuffle=False,
        class_ids_from_zero_in_each_exp=True,
    )
    return made.train_stream


@pytest.mark.parametrize("head", ["trained", "discriminant"])
def test_a_window_may_hold_several_heads(head: str) -> None:
    model = as_multitask(network(), "2")
    mine = strategy(model, head=head, merge_every=2, train_epochs=20)
    tasks = two_tasks(60)
    for experience in tasks:
        mine.train(experience)
    assert mine.merger.waiting == 0
    assert known_by_head(model) > 0.8
    assert not mine.merge_reports  # of a first expert nothing is merged
    for experience in tasks:
        mine.train(experience)
    assert known_by_head(model) > 0.8
    assert len(mine.merge_reports) == 2


def test_a_memory_too_small_for_the_heads_of_a_window_is_refused_before_training() -> None:
    first, second = two_tasks(60)
    mine = strategy(as_multitask(network(), "2"), head="trained", merge_every=2, memory_mb=0.004)
    mine.train(first)
    trained = mine.clock.train_iterations
    with pytest.raises(OptionError, match="2 tasks needs"):
        mine.train(second)
    assert mine.clock.train_iterations == trained


def test_schedulers_and_validation_streams_go_beside() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    plugin = LRSchedulerPlugin(scheduler, reset_scheduler=True)
    mine = GeodesicMerge(
        model=model, optimizer=optimizer, pseudo_inputs=100, train_mb_size=16, train_epochs=3,
        plugins=[plugin], eval_every=1,
        evaluator=EvaluationPlugin(loggers=[TextLogger(io.StringIO())]),
    )  # fmt: skip
    tasks = stream({0: 60, 1: 60}, {2: 60, 3: 60})
    for experience in tasks:
        mine.train(experience, eval_streams=[tasks])
    assert accuracy(model, range(4)) > 0.6


class Autocast(nn.Module):
    """Network that computes in half precision, as with automatic mixed precision."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out: Tensor = self.layers(x)
        return out.float()


@pytest.mark.parametrize("head", ["trained", "discriminant"])
def test_mixed_precision(head: str) -> None:
    model = Autocast()
    mine = strategy(model, head=head)
    for experience in stream({0: 90, 1: 90}, {2: 90, 3: 90}):
        mine.train(experience)
    assert accuracy(model, range(4)) > 0.8
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize(
    ("head", "what"), [("trained", "1 task"), ("discriminant", "2 classes"), ("auto", "")]
)
def test_a_memory_too_small_is_refused_before_training(head: str, what: str) -> None:
    mine = strategy(network(), head=head, memory_mb=0.0001)
    with pytest.raises(OptionError, match=f"{what}.* needs 0.* MB at least.*raise `memory_mb`"):
        mine.train(stream({0: 40, 1: 40})[0])
    assert mine.clock.train_iterations == 0
    model = network()
    plugin = GeodesicMergePlugin(head=head, memory_mb=0.0001)
    other = Naive(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), train_mb_size=16,
        plugins=[plugin], evaluator=EvaluationPlugin(loggers=[TextLogger(io.StringIO())]),
    )  # fmt: skip
    with pytest.raises(OptionError, match="raise `memory_mb`"):
        other.train(stream({0: 40, 1: 40})[0])


def test_a_later_task_that_does_not_fit_is_refused_before_training() -> None:
    tasks = stream(*({k: 40, k + 1: 40} for k in range(5)))
    refused = 0
    for limit in (0.004, 0.03):
        mine = strategy(network(), head="trained", memory_mb=limit)
        try:
            for experience in tasks:
                trained = mine.clock.train_iterations
                mine.train(experience)
                assert mine.memory_bytes <= limit * 1e6
        except OptionError:
            refused += 1
            assert mine.clock.train_iterations == trained  # none in vain
    assert refused == 1


def test_a_merge_that_diverges_leaves_expert_memory_and_what_waits() -> None:
    model = network()
    mine = strategy(model, head="trained", merge_every=2, train_epochs=1)
    tasks = stream({0: 60}, {1: 60}, {2: 60}, {3: 60})
    for experience in tasks[:3]:
        mine.train(experience)
    usual, memory = mine.merger.options, mine.memory
    mine.merger.options = replace_options(usual, learning_rate=1e12)
    with pytest.raises(NumericalError, match="smaller `learning_rate`"):
        mine.train(tasks[3])
    expert = [p.clone() for p in model.parameters()]
    assert mine.memory is memory
    assert mine.merger.waiting == 2
    mine.merger.options = usual
    assert all(map(torch.equal, expert, model.parameters()))
    mine.merge()
    assert (len(mine.memory), mine.merger.waiting) == (2, 0)
    assert accuracy(model, range(4)) > 0.8


def test_experiences_come_as_a_list() -> None:
    tasks = stream({0: 60, 1: 60}, {2: 60, 3: 60})
    mine, others = strategy(network()), strategy(network())
    torch.manual_seed(1)
    mine.train(list(tasks))
    torch.manual_seed(1)
    for experience in tasks:
        others.train(experience)
    assert len(mine.merge_reports) == 1
    assert all(map(torch.equal, mine.model.parameters(), others.model.parameters()))


def known_by_head(model: nn.Module) -> float:
    """Return the smallest accuracy of a head on its two classes."""
    shares = []
    for k in range(2):
        x, y = blobs({2 * k: 40, 2 * k + 1: 40}, seed=5)
        with torch.no_grad():
            right = model.eval()(x, k).argmax(dim=1) == y - 2 * k
        shares.append(float(right.float().mean()))
    return min(shares)


def learned(mine: GeodesicMerge) -> int:
    """Return the number of tasks in memory."""
    return len(mine.memory) if mine.features is None else mine.features.tasks


def with_several_labels(count: int) -> Any:
    """Return two experiences, each with both tasks."""
    tasks = list(two_tasks(count))
    parts = [
        [task.dataset.subset(list(range(k, len(task.dataset), 2))) for task in tasks]
        for k in range(2)
    ]
    made = benchmark_from_datasets(train=[first.concat(second) for first, second in parts])
    return with_classes_timeline(with_task_labels(made)).train_stream


@pytest.mark.parametrize("head", ["trained", "discriminant"])
def test_each_task_label_of_an_experience_is_a_task_of_its_own(head: str) -> None:
    model = MultiHead()
    metrics = EvaluationPlugin(merge_metrics()[0], loggers=[TextLogger(io.StringIO())])
    mine = strategy(
        model, head=head, train_epochs=20, memory_mb=1, inputs=20, evaluator=metrics,
    )  # fmt: skip
    for experience in with_several_labels(60):
        mine.train(experience)
    assert known_by_head(model) > 0.8
    assert learned(mine) == 4
    assert [report.used["inputs"] for report in mine.merge_reports] == [20, 20]  # of each head
    assert mine.merge_reports[1].expert_seconds == 0
    (values,) = metrics.get_all_metrics().values()
    assert len(values[1]) == 2


@pytest.mark.parametrize("head", ["trained", "discriminant"])
def test_a_merge_that_fails_at_a_later_head_leaves_all_as_it_was(head: str) -> None:
    model = MultiHead()
    mine = strategy(model, head=head, train_epochs=2)
    first, second = with_several_labels(40)
    mine.train(first)
    memory, features, calls = mine.memory, mine.features, []
    module, name = (
        (merger, "merge_expert") if head == "trained" else (feature_merger, "merge_features")
    )
    merge = getattr(module, name)

    def state() -> list[tuple[Tensor, bool]]:
        return [(p.detach().clone(), p.requires_grad) for p in model.parameters()]

    def fails_later(*given: Any, **options: Any) -> Any:
        calls.append(state())
        if len(calls) == 2:
            raise NumericalError("not finite")
        return merge(*given, **options)

    with patch.object(module, name, fails_later), pytest.raises(NumericalError):
        mine.train(second)
    assert mine.memory is memory
    assert mine.features is features
    assert not mine.merge_reports
    for (before, held), (after, still) in zip(calls[0], state(), strict=True):
        assert torch.equal(before, after)
        assert held == still
    mine.merge()
    assert (learned(mine), len(mine.merge_reports)) == (4, 2)


class MultiHead(MultiTaskModule):  # type: ignore[misc]
    """Network with Avalanche's heads, which take batches of several tasks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Linear(6, 16), nn.ReLU())
        self.classifier = MultiHeadClassifier(16, 2, masking=False)

    def forward(self, x: Tensor, task_labels: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x), task_labels)
        return out
