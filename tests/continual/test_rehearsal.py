"""Rehearsal of remembered tasks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from geomerge.continual.rehearsal import Rehearsal, RehearsalObjective


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
        new = Rehearsal([remembered], lambda _: case.network, 8, 1)
        return RehearsalObjective(new, rehearsal, scale)(case.expert)

    (distance, v), (same, longer) = direction(1.0), direction(3.0)
    assert same == distance
    torch.testing.assert_close(longer, 3 * v)
