"""Merges in which a network without inputs answers for those of another task."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import geomerge as gm
from geomerge.data.batchnorm import re_estimate, statistics_gap
from geomerge.errors import Problems
from geomerge.merging.analysis import look_at
from geomerge.merging.prepare import prepare
from geomerge.merging.presets.joint_auxiliary import JointAuxiliaryPreset
from geomerge.walks.objectives import divergence


def network(seed: int, convolves: bool = True) -> nn.Module:
    torch.manual_seed(seed)
    if not convolves:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )


def pair(convolves: bool = True) -> list[gm.Expert]:
    """Return two networks, of which the second one has no inputs."""
    x = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = [
        gm.Expert.from_module(network(seed, convolves), inputs=x, name=f"net{seed}")
        for seed in (1, 2)
    ]
    return [found[0], replace(found[1], inputs=None)]


def distance(merged: gm.MergeResult, w: torch.Tensor) -> float:
    """Return the KL from the second network to a point, on the inputs of the first."""
    first, second = merged.space
    assert first.inputs is not None
    x = first.inputs.batch(slice(None))
    target = second.network.logits(second.weights, x).log_softmax(dim=1)
    return float(divergence(target)(second.network.logits(w, x)))


@pytest.mark.parametrize("augment", [None, "flips"])
def test_function_is_learned_on_the_inputs_of_the_other_task(augment: str | None) -> None:
    merged = gm.merge(
        pair(), head="separate", preset="joint-auxiliary", steps=12, points=8, augment=augment
    )
    assert merged.space.bn == "re-estimate"
    assert [expert.name for expert in merged.preset.walked_on] == ["a"]
    assert any("a's inputs stood in for those of b" in note for note in merged.notes)
    assert look_at(merged).surrogates == {}  # the report shows no images of the user
    middle = merged.space.settle(merged.space.middle())
    assert distance(merged, merged.w) < distance(merged, middle)


def test_inputs_stand_in_where_running_statistics_are_theirs() -> None:
    first, blind = pair()
    assert first.inputs is not None
    known = re_estimate(blind.network, blind.weights, [first.inputs])
    merged = gm.merge([first, replace(blind, weights=known)], head="separate", steps=1, points=8)
    assert merged.preset.name == "joint-auxiliary"
    assert merged.rule.name == "equal-drift"
    other = replace(first.inputs, raw=first.inputs.raw + 5)
    assert statistics_gap(blind.network, known, first.inputs) < 1e-6
    assert statistics_gap(blind.network, known, other) > 0.1
    assert statistics_gap(blind.network, known, first.inputs.first(1)) == float("inf")
    found = prepare(
        [replace(first, inputs=other), blind],
        gm.MergeOptions(head="separate"),
        Problems(strict=True),
    )
    assert found is not None
    problem = JointAuxiliaryPreset.problem(found)
    assert problem is not None
    assert "running statistics differ by" in problem


def test_one_head_and_networks_that_do_not_convolve_are_refused() -> None:
    with pytest.raises(gm.errors.OptionError, match="contradict each other in a head that is"):
        gm.merge(pair(), head="shared", preset="joint-auxiliary")
    with pytest.raises(gm.errors.OptionError, match="a network that convolves"):
        gm.merge(pair(convolves=False), head="separate", preset="joint-auxiliary")
    blind = [replace(expert, inputs=None) for expert in pair()]
    with pytest.raises(gm.errors.OptionError, match="inputs of at least one"):
        gm.merge(blind, head="separate", preset="joint-auxiliary")
