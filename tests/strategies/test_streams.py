"""Streams as Avalanche gets them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.benchmarks.utils.data_loader import TaskBalancedDataLoader
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch.utils.data import DataLoader

from geomerge.errors import OptionError
from geomerge.strategies.examples import BatchLoader
from geomerge.strategies.networks import accuracy, make_network
from geomerge.strategies.options import StreamOptions
from geomerge.strategies.streams import Stream, make_stream


def stream(name: str = "split-digits", **options: Any) -> Stream:
    return make_stream(StreamOptions(name, **options))


def data(made: Stream, k: int) -> Any:
    return made.benchmark.train_stream[k].dataset


def test_every_experience_permutes_inputs_in_its_own_way() -> None:
    made = stream("permuted-digits", experiences=3)
    one, two = (data(made, k).take(torch.arange(50)) for k in (0, 2))
    assert not torch.equal(one[0], two[0])
    assert torch.equal(one[0].flatten(1).sort().values, two[0].flatten(1).sort().values)
    assert torch.equal(one[1], two[1])
    order = made.test[2].permutation
    assert order is not None
    plain = made.test[2].inputs.batch(slice(0, 5)).flatten(1)
    assert torch.equal(made.test[2].take(slice(0, 5)).flatten(1), plain[:, order])

    same = stream("permuted-digits", experiences=3)
    other = stream("permuted-digits", experiences=3, seed=1)
    assert torch.equal(data(same, 2).take(torch.arange(9))[0], two[0][:9])
    assert not torch.equal(data(other, 2).take(torch.arange(9))[0], two[0][:9])


@pytest.mark.parametrize("scenario", ["class", "domain", "task"])
def test_a_split_stream_is_what_its_scenario_says(scenario: str) -> None:
    made = stream(scenario=scenario)
    assert len(made) == 5
    experiences = list(made.benchmark.train_stream)
    named = [{int(c) for c in name.split()[1:]} for name in made.names]
    assert set.union(*named) == set(range(10))
    for k, one in enumerate(experiences):
        classes = set(one.classes_in_this_experience)
        assert classes == (named[k] if scenario == "class" else {0, 1})
        assert list(one.task_labels) == [k if scenario == "task" else 0]
        _, labels, tasks = one.dataset.take(torch.arange(len(one.dataset)))
        assert set(labels.tolist()) == classes
        assert set(tasks.tolist()) == set(one.task_labels)
    assert made.outputs == (10 if scenario == "class" else 2)
    assert made.heads == (scenario == "task")
    assert sum(len(one.dataset) for one in experiences) == 1199  # of all ten classes
    assert [e.current_experience for e in made.benchmark.valid_stream] == [0, 1, 2, 3, 4]


def test_a_whole_batch_is_what_single_examples_are() -> None:
    made = stream(scenario="task")
    mixed = data(made, 1).subset([5, 3, 8]).concat(data(made, 0)).subset([2, 40, 0, 1, 3])
    batch = mixed.take(torch.arange(5))
    for k in range(5):
        x, y, task = mixed[k]
        assert torch.equal(batch[0][k], x)
        assert (int(batch[1][k]), int(batch[2][k])) == (y, task)
    assert batch[2].tolist() == [1, 0, 1, 1, 0]
    (read,) = DataLoader(mixed, batch_size=5, collate_fn=mixed.collate_fn)
    (slow,) = TaskBalancedDataLoader(mixed, batch_size=10, shuffle=False)
    for fast, single, wanted in zip(read, slow, batch, strict=True):
        assert torch.equal(fast, wanted)
        assert torch.equal(single.double().sum(), wanted.double().sum())


def test_every_example_is_seen_once_and_a_memory_fills_batches() -> None:
    made = stream()
    whole, memory = data(made, 1), data(made, 0).subset(range(30))
    batches = list(BatchLoader(whole, 32))
    assert len(batches) == len(BatchLoader(whole, 32))
    assert sum(len(y) for _, y, _ in batches) == len(whole)
    seen = torch.cat([x for x, _, _ in batches]).flatten(1)
    there = whole.take(torch.arange(len(whole)))[0].flatten(1)
    torch.testing.assert_close(seen.sum(0), there.sum(0))
    for (_, y, _), plain in zip(BatchLoader(whole, 32, memory, 8), batches, strict=True):
        assert len(y) == len(plain[1]) + 8


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_avalanche_reads_the_stream_and_finds_the_same_accuracy(scenario: str) -> None:
    made = stream(scenario=scenario)
    network = make_network(made, "mlp-16", 0)
    evaluator = EvaluationPlugin(accuracy_metrics(experience=True), loggers=[_Silent()])
    strategy = Naive(
        model=network, optimizer=torch.optim.SGD(network.parameters(), 0.1), train_mb_size=16,
        train_epochs=5, evaluator=evaluator,
    )  # fmt: skip
    strategy.train(made.benchmark.train_stream[0])
    found = strategy.eval(made.benchmark.test_stream[:1])
    key = "Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000"
    assert found[key] == pytest.approx(accuracy(network, made.test[0]))
    assert found[key] > 0.8


class _Silent:
    """A logger that says nothing."""

    def log_metrics(self, _: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


def test_real_streams(real_data: Path) -> None:
    turned = stream("rotated-mnist", experiences=3, data_root=str(real_data))
    first, last = (turned.test[k].inputs.raw[:20] for k in (0, 2))
    assert turned.names == ["0 degrees", "90 degrees", "180 degrees"]
    assert last.dtype == torch.uint8
    assert torch.equal(first.flip(2, 3), last)
    both = stream("mnist-fashion", data_root=str(real_data))
    assert both.names == ["mnist", "fashion-mnist"]
    assert [len(data(both, k)) for k in (0, 1)] == [55_000, 55_000]


def test_a_first_task_of_several_classes_and_then_one_by_one() -> None:
    made = stream(experiences=6, first_classes=5, per_class=30)
    sizes = [len(e.classes_in_this_experience) for e in made.benchmark.train_stream]
    assert sizes == [5, 1, 1, 1, 1, 1]
    assert [len(data(made, k)) for k in (0, 1)] == [150, 30]
    assert len(made.test[1].labels) > 20


def test_convolutions_take_images() -> None:
    made = stream()
    network = make_network(made, "conv-4", 0)
    assert network(made.test[0].take(slice(0, 3))).shape == (3, 10)
    flat = replace(made, shape=(64,))
    with pytest.raises(OptionError, match="conv-4 takes images"):
        make_network(flat, "conv-4", 0)
