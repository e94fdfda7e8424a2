from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from geomerge import Expert, Task, load_task
from geomerge.data import as_they_are
from geomerge.errors import OptionError
from geomerge.metrics import EuclideanMetric
from geomerge.pruning.options import FunctionOptions
from geomerge.pruning.problem import prepare_problem


def stack() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10))


@pytest.fixture(scope="module")
def expert() -> Expert:
    return Expert.from_module(stack(), load_task("digits"))


def test_inputs_and_examples_are_drawn_together(expert: Expert) -> None:
    problem = prepare_problem(expert, FunctionOptions(inputs=40), seed=3)
    assert len(problem.inputs) == len(problem.train.labels) == 40
    one, other = (split.batch(slice(None)) for split in (problem.inputs, problem.train.inputs))
    assert torch.equal(one, other)
    whole = load_task("digits").train
    x = whole.inputs.batch(slice(None))
    for row, label in zip(one, problem.train.labels, strict=True):
        same = (x == row).flatten(1).all(dim=1)
        assert label in whole.labels[same]


def test_a_function_can_be_kept_on_other_inputs(expert: Expert) -> None:
    own = as_they_are(torch.rand(30, 1, 8, 8))
    problem = prepare_problem(expert.with_inputs(own), FunctionOptions(), seed=0)
    assert problem.inputs is own
    assert problem.outputs.shape == (30, 10)
    assert len(problem.train.labels) == len(load_task("digits").train.labels)


@pytest.mark.parametrize(
    ("count", "mix", "share"), [(None, None, 0.5), (20, 0.0, 0.0), (20, 0.2, 0.2)]
)
def test_few_inputs_are_mixed(
    expert: Expert, count: int | None, mix: float | None, share: float
) -> None:
    assert prepare_problem(expert, FunctionOptions(inputs=count, mix=mix), seed=0).mix == share


def test_tokens_cannot_be_mixed() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(12, 2))
    x, y = torch.randint(0, 5, (60, 4)), torch.arange(60) % 2
    task = Task.from_tensors(x, y, name="words")
    expert = Expert.from_module(network, task)
    assert prepare_problem(expert, FunctionOptions(), seed=0).mix == 0
    with pytest.raises(OptionError, match="`mix` needs inputs of floats or pixels"):
        prepare_problem(expert, FunctionOptions(mix=0.5), seed=0)


def test_the_dense_metric_is_measured_and_counted_once(expert: Expert) -> None:
    problem = prepare_problem(expert, FunctionOptions(inputs=50), seed=0)
    metric = problem.metric_at(problem.weights)
    assert problem.metric_at(problem.weights) is metric
    assert problem.cost.passes == 5 * 50
    problem.metric_at(problem.weights.clone())
    assert problem.cost.passes == 2 * 5 * 50


def test_the_euclidean_metric_costs_nothing(expert: Expert) -> None:
    options = replace(
        FunctionOptions(), geometry=replace(FunctionOptions().geometry, metric="euclidean")
    )
    problem = prepare_problem(expert, options, seed=0)
    assert isinstance(problem.metric_at(problem.weights), EuclideanMetric)
    assert problem.cost.passes == 0


def test_assumptions_about_the_network_are_notes(expert: Expert) -> None:
    assert prepare_problem(expert, FunctionOptions(), seed=0).notes == []
    assumed = replace(
        expert, warnings=("ReLU is assumed",), meta={"tasks": {"digits": {}, "b": {}}}
    )
    notes = prepare_problem(assumed, FunctionOptions(), seed=0).notes
    assert notes == [
        "ReLU is assumed",
        "the function was kept on digits alone; the network was also trained for b",
    ]
