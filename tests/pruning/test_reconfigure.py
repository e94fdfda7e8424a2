from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from geomerge import Expert
from geomerge.errors import OptionError
from geomerge.paths.path import WeightPath
from geomerge.pruning.options import ReconfigureOptions, SparsifyOptions
from geomerge.pruning.plan import PlanStep
from geomerge.pruning.reconfigure import reconfigure
from geomerge.pruning.shrink import removed_units
from geomerge.pruning.sparsify import sparsify

FAST = SparsifyOptions(steps=60, stages=4, batch=64, inputs=400, points=8)


MOVES = ReconfigureOptions(batch=64, inputs=400, points=8)


FIRST, SECOND = "layers.0", "layers.1"  # of lenet-300-100, with 300 and 100 units


def test_units_go_and_come_back_as_planned(dense: Expert, tmp_path: Path) -> None:
    plan = [
        PlanStep("small", {FIRST: 100, SECOND: 0.5}, {}),
        PlanStep("other", {FIRST: 20}, {SECOND: 30}),
        PlanStep("whole", {}, {FIRST: 1.0, SECOND: 1.0}),
    ]
    result = reconfigure(dense, plan, MOVES, folder=tmp_path, steps=40, stages=3)
    reached = result.configurations
    small, other, whole = reached
    network, units = dense.network, result.problem.units
    assert [one.name for one in reached] == ["small", "other", "whole"]
    assert {k: len(v) for k, v in small.removed.items()} == {FIRST: 100, SECOND: 50}
    assert {k: len(v) for k, v in other.removed.items()} == {FIRST: 120, SECOND: 20}
    assert whole.removed == {}
    assert set(small.removed[FIRST]) < set(other.removed[FIRST])
    assert set(other.removed[SECOND]) < set(small.removed[SECOND])
    start = dense.weights
    for one in reached:
        path = WeightPath(tmp_path / one.name / "path")
        w = one.walked.weights
        assert torch.equal(path.at(0.0), start)
        assert torch.equal(path.at(1.0), w)
        assert removed_units(network, w, units) == one.removed
        start = w
        assert one.row.drift < one.naive.drift or not one.removed
        assert one.epochs > 0
    assert result.dense_row.drift == whole.naive.drift == 0
    # Units that came back are as they were, but for what reads or makes those still gone.
    gone = torch.zeros(network.n, dtype=torch.bool)
    for layer, found in other.removed.items():
        gone[units[layer].places(found)] = True
    back = set(small.removed[SECOND]) - set(other.removed[SECOND])
    held = torch.zeros(network.n, dtype=torch.bool)
    held[units[SECOND].places(sorted(back))] = True
    assert torch.equal(other.walked.weights[held & ~gone], dense.weights[held & ~gone])
    held = torch.zeros(network.n, dtype=torch.bool)
    for layer, found in other.removed.items():
        held[units[layer].places(found)] = True
    assert torch.equal(whole.walked.weights[held], dense.weights[held])
    assert whole.row.agreement > 0.98


@pytest.mark.parametrize("choice", ["greedy", "rates"])
def test_a_plan_goes_on_from_a_network_with_units_gone(
    dense: Expert, tmp_path: Path, choice: str
) -> None:
    options = replace(FAST, steps=20, stages=2)
    sparse = sparsify(dense, options, folder=tmp_path / "first", remove={FIRST: 30})
    plan = [PlanStep("more", {SECOND: 20}, {}), PlanStep("back", {}, {FIRST: 30})]
    result = reconfigure(
        sparse, plan, MOVES, folder=tmp_path / "plan", choice=choice, steps=20, stages=2
    )
    more, back = result.configurations
    assert more.removed[FIRST] == sparse.removed[FIRST]
    assert len(more.removed[SECOND]) == 20
    assert back.removed == {SECOND: more.removed[SECOND]}
    assert torch.equal(
        WeightPath(tmp_path / "plan" / "more" / "path").at(0.0), sparse.chosen.weights
    )


def test_plans_are_walked_by_prescription(dense: Expert, tmp_path: Path) -> None:
    plan = [PlanStep("one", {FIRST: 3}, {})]
    with pytest.raises(OptionError, match="unknown option `walk`"):
        reconfigure(dense, plan, folder=tmp_path, walk="pull")
