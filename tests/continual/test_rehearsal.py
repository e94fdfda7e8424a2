"""Rehearsal of remembered tasks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from geomerge.continual.memory import answers
from geomerge.continual.rehearsal import Rehearsal, RehearsalObjective
from geomerge.walks.objectives import KLToTeacher


def test_what_is_remembered_has_not_drifted_yet(case: Any) -> None:
    for count in (1, 17, 100, 499, 500, 501):
        remembered = case.remembered(pseudo_inputs=count, examples=7)
        drift, changed = Rehearsal([remembered], lambda _: case.network, 8, 0).drift(case.first)
        assert drift["task 0"] == pytest.approx(0, abs=1e-5)
        assert changed["task 0"] == 0


def test_tasks_are_measured_together_as_each_alone(case: Any) -> None:
    tasks = [case.remembered(pseudo_inputs=count, examples=7) for count in (30, 400, 5)]
    tasks = [replace(task, name=f"task {k}") for k, task in enumerate(tasks)]
    together, changed = Rehearsal(tasks, lambda _: case.network, 8, 0).drift(case.expert)
    for task in tasks:
        alone, answers = Rehearsal([task], lambda _: case.network, 8, 0).drift(case.expert)
        assert together[task.name] == pytest.approx(alone[task.name], rel=1e-4)
        assert changed[task.name] == answers[task.name]


def test_a_scale_lengthens_the_mean_gradient_and_no_distance(case: Any) -> None:
    remembered = case.remembered(pseudo_inputs=40, examples=0)

    def direction(scale: float) -> tuple[float, torch.Tensor]:
        rehearsal = Rehearsal([remembered], lambda _: case.network, 8, 0)
        return RehearsalObjective(toward_expert(case), rehearsal, scale)(case.first)

    (distance, v), (same, longer) = direction(1.0), direction(3.0)
    assert same == distance
    torch.testing.assert_close(longer, 3 * v)


def test_one_pass_of_all_tasks_is_the_mean_of_one_of_each(case: Any) -> None:
    tasks = [case.remembered(pseudo_inputs=count, examples=0) for count in (40, 30)]
    new, old = toward_expert(case), Rehearsal(tasks, lambda _: case.network, 8, 0)
    whole = RehearsalObjective(toward_expert(case), Rehearsal(tasks, lambda _: case.network, 8, 0))
    for w in (case.expert, case.first):  # two steps, whose batches differ
        (distance, v), (drift, back), (mean, direction) = new(w), old(w), whole(w)
        assert mean == pytest.approx((distance + drift) / 3, rel=1e-4)
        torch.testing.assert_close(direction, (v + back) / 3, rtol=1e-3, atol=1e-6)


def toward_expert(case: Any) -> KLToTeacher:
    inputs = case.experience(1).inputs
    return KLToTeacher(case.network, answers(case.network, case.expert, inputs), inputs, 8, 0)
