"""Merge of an expert into the network before, in plain PyTorch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from geomerge import Network
from geomerge.continual import Experience, MergeReport, merge_expert, remember
from geomerge.continual.drift_constraints import quadratic_drifts
from geomerge.data import as_they_are
from geomerge.errors import OptionError


@pytest.fixture(scope="module")
def merged(case: Any) -> tuple[torch.Tensor, MergeReport]:
    """The merge with the usual options."""
    found: tuple[torch.Tensor, MergeReport] = case.merge()
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"labels": True},
        {"pseudo_inputs": 0, "examples": 30},
        {"budget": 0.3},
        {"metric": "euclidean"},
        {"metric": "euclidean", "budget": 0.3},
        {"metric_tasks": 0},
        {"metric_tasks": "new"},
    ],
)
def test_the_merged_network_does_both_tasks(
    case: Any, merged: tuple[torch.Tensor, MergeReport], changes: dict[str, Any]
) -> None:
    w, report = case.merge(**changes) if changes else merged
    assert case.accuracy(w, 0) > 0.95
    assert case.accuracy(w, 1) > 0.95
    assert report.pick.value <= min(point.value for point in (*report.line, *report.path))
    assert report.used["labels"] == (600 if changes.get("labels") else 0)


def test_more_earlier_tasks_mean_more_steps_down_to_batches_of_eight(case: Any) -> None:
    one = case.remembered()
    for tasks, steps in ((1, 50), (4, 50), (5, 75), (30, 75)):
        memory = [replace(one, name=f"task {k}") for k in range(tasks)]
        report = case.merge(memory, epochs=1, pseudo_inputs=20)[1]
        assert report.steps == steps


def test_without_pseudo_inputs_the_sketch_alone_keeps_something(case: Any) -> None:
    changes = {"pseudo_inputs": 0, "budget": 0.005}
    memory = [case.remembered(**changes)]
    w, report = case.merge(memory, **changes)
    assert len(memory[0].targets) == 0
    assert report.rows > 0
    assert report.predicted["task 0"] <= 0.005 * 1.001
    assert case.accuracy(w, 0) > case.accuracy(case.expert, 0) + 0.1


def test_a_budget_holds_and_says_what_it_took(
    case: Any, merged: tuple[torch.Tensor, MergeReport]
) -> None:
    free = merged[1]
    budget = free.predicted["task 0"] / 2
    w, report = case.merge(budget=budget)
    assert report.predicted["task 0"] <= budget * 1.001
    assert 0 < report.solves <= report.rows
    drifts = quadratic_drifts([case.remembered()], lambda _: case.network, case.first)
    assert drifts[0].value(w) == pytest.approx(report.predicted["task 0"])
    loose = case.merge(budget=1e6)[1]
    assert (loose.rows, loose.solves, loose.shortened) == (0, 0, 0)


def test_frozen_weights_stay(case: Any) -> None:
    free = torch.ones(case.network.n, dtype=torch.bool)
    free[case.network.slices["0.weight"]] = False
    free[case.network.slices["0.bias"]] = False
    expert = torch.where(free, case.expert, case.first)
    for changes in ({}, {"budget": 0.1}, {"metric": "euclidean"}):
        w, _ = merge_expert(
            case.first, expert, case.experience(1), [case.remembered(**changes)],
            lambda _: case.network, case.options(**changes), free,
        )  # fmt: skip
        assert torch.equal(w[~free], case.first[~free])
        assert not torch.equal(w[free], case.first[free])


def test_a_budget_holds_with_running_statistics_too(case: Any) -> None:
    torch.manual_seed(0)
    network = Network(
        nn.Sequential(nn.Linear(8, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 3))
    )
    memory = [remember(network, network.initial, case.experience(0), case.options())]
    expert = network.initial + 0.1 * torch.randn(network.n).abs()
    for budget in (0.001, 0.01, 0.1):
        _, report = merge_expert(
            network.initial, expert, case.experience(1), memory, lambda _: network,
            case.options(budget=budget),
        )  # fmt: skip
        assert report.predicted["task 0"] <= budget * 1.001


def test_the_same_seed_gives_the_same_bits(
    case: Any, merged: tuple[torch.Tensor, MergeReport]
) -> None:
    one, first = merged
    two, second = case.merge()
    assert torch.equal(one, two)
    assert first == second
    assert not torch.equal(one, case.merge(seed=5)[0])


def test_an_expert_that_learned_nothing_leaves_the_network(case: Any) -> None:
    w, report = merge_expert(
        case.first, case.first, case.experience(0), [case.remembered()], lambda _: case.network,
        case.options(),
    )  # fmt: skip
    assert max(report.pick.drift.values()) < 1e-3
    assert report.pick.changed["task 0"] < 0.01
    assert case.accuracy(w, 0) == pytest.approx(case.accuracy(case.first, 0), abs=0.01)


def test_classes_that_are_masked(case: Any) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = case.network.module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = torch.full((len(x), 2), -1e9)
            return torch.cat([self.inner(x), hidden], dim=1)

    network, options = Network(Masked()), case.options()
    memory = [remember(network, case.first, case.experience(0), options)]
    w, _ = merge_expert(
        case.first, case.expert, case.experience(1), memory, lambda _: network, options
    )
    assert case.accuracy(w, 0) > 0.95
    assert case.accuracy(w, 1) > 0.95


def test_labels_must_be_there(case: Any) -> None:
    blind = replace(case.experience(1), labels=None)
    with pytest.raises(OptionError, match="needs the labels of the experience"):
        merge_expert(
            case.first, case.expert, blind, [], lambda _: case.network, case.options(labels=True)
        )


def test_a_head_that_the_options_do_not_know(case: Any) -> None:
    experience = Experience(as_they_are(case.tasks[1][0]), head=3)
    seen = []

    def network_of(head: int | None) -> Network:
        seen.append(head)
        return case.network

    merge_expert(
        case.first, case.expert, experience, [case.remembered()], network_of, case.options()
    )
    assert set(seen) == {3, None}  # that of the experience, and that of the remembered task
