"""Drifts of a network: along lines, and of large networks on few inputs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import geomerge as gm
from geomerge.evaluation.drift import LARGE, Probe, Scorer, predicted_change, predicted_on_line
from geomerge.merging.prepare import ROUGH, rough_share


def sketched() -> gm.Expert:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))
    expert = gm.Expert.from_module(module, "digits").with_sketch(inputs=50)
    return replace(expert, task=None, inputs=None)


def test_predicted_drift_is_quadratic_along_a_line() -> None:
    expert = sketched()
    first, last = expert.weights, expert.weights + torch.randn(expert.network.n)
    for start, end in ((first, last), (last, first), (last, last + 0.1)):
        along = predicted_on_line(expert, start, end)
        measure = Scorer([expert], "hellinger").on_line(start, end)
        for share in (0.0, 0.3, 1.0):
            w = torch.lerp(start, end, share)
            expected = pytest.approx(predicted_change(expert, w), rel=1e-3, abs=1e-6)
            assert along(share) == expected
            assert measure(share, w).drift[expert.name] == expected


def test_a_probe_measures_from_any_point() -> None:
    expert = gm.Expert.from_module(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "digits")
    assert expert.inputs is not None
    points = [expert.weights + 0.1 * k * torch.randn(expert.network.n) for k in range(4)]
    probe = Probe(expert.network, expert.inputs, "hellinger")
    for pair in ((0, 1), (1, 2), (0, 3), (2, 3), (0, 1)):
        before, after = (points[k] for k in pair)
        alone = Probe(expert.network, expert.inputs, "hellinger")
        assert probe(before, after) == alone(before, after)


def test_a_first_search_among_points_of_large_networks_is_on_few_examples() -> None:
    x, y = torch.randn(60, 8), torch.arange(60) % 2
    many, labels = torch.randn(8 * ROUGH, 8), torch.arange(8 * ROUGH) % 2
    task = gm.Task.from_tensors(x, y, select=(many, labels), test=(x, y), name="mine")
    for width, share in ((4, 1.0), (LARGE // 8, 1 / 8)):
        module = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 2))
        assert rough_share([gm.Expert.from_module(module, task)]) == share
