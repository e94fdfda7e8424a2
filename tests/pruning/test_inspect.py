from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from geomerge import Expert, Network
from geomerge.data import Inputs, Normalisation, Split
from geomerge.errors import OptionError
from geomerge.evaluation.evaluate import evaluate
from geomerge.metrics import output_map
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.pruning.held_out import hold_out
from geomerge.pruning.inspect import LEVELS, inspect, inspect_weights
from geomerge.pruning.units import find_units
from geomerge.testing import dense_kronecker


class Cosine(nn.Module):
    """Divides by the length of its features: not defined without them."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(5, 4, bias=False)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.hidden(x)
        return self.last(x / x.norm(dim=1, keepdim=True))


class Untraced(nn.Module):
    """Fails wherever its weights have gradients, as under torch-pruning's tracer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 2 and self.first.weight.requires_grad:
            raise RuntimeError("not for pairs")
        return self.last(self.first(x).tanh())


def findings(network: Network, w: Tensor, x: Tensor, output: str) -> dict:
    """Inspect a network on the same inputs for everything; as JSON has it."""
    inputs = Inputs(x, Normalisation((0.0,), (1.0,)), dtype=torch.float64)
    labels = torch.arange(len(inputs)) % 2
    held_out = hold_out(network, w, Split(inputs, labels), output)
    return asdict(inspect_weights(network, w, inputs, held_out, seed=0))


def vectors(count: int = 10, repeats: int = 4) -> Tensor:
    """Inputs of which every quarter is the same: units are measured on a quarter."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 5, dtype=torch.float64, generator=generator).repeat(repeats, 1)


def tiny(*layers: nn.Module) -> Network:
    torch.manual_seed(0)
    for layer in layers:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    return Network(nn.Sequential(*layers).double())


def test_in_a_linear_network_predicted_is_measured() -> None:
    network = tiny(nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 2))
    found = findings(network, network.initial, vectors(), "logits")
    removals = [row["removal"] for row in found["layers"]]
    assert len(removals) == 3
    for removal in removals:
        assert removal["measured"] == pytest.approx(removal["predicted"], rel=1e-9)
    for one in found["units"]:
        assert one["correlation"] == pytest.approx(1)
        for row in one["units"]:
            assert row["measured"] == pytest.approx(row["predicted"], rel=1e-9)


def test_in_one_linear_layer_so_it_is_for_all_masks() -> None:
    network = tiny(nn.Linear(5, 2))
    found = findings(network, network.initial, vectors(), "logits")
    assert [row["share"] for row in found["masks"]] == [*LEVELS, *LEVELS]
    for row in found["masks"]:
        assert row["measured"] == pytest.approx(row["predicted"], rel=1e-9)
    assert found["units"] == []
    assert set(found["refused"]) == {"0"}


def test_numbers_agree_with_the_dense_truth(case: tuple[Network, Tensor]) -> None:
    network, x = case
    w = network.initial
    found = findings(network, w, x, "hellinger")
    metric = estimate_kronecker(network, w, [x], "hellinger", 0)
    g = dense_kronecker(metric)[: network.n_parameters, : network.n_parameters]
    phi = output_map(network.logits(w, x), "hellinger")
    trace = float(g.diagonal().sum())
    for row, layer in zip(found["layers"], metric.layers, strict=False):
        at = layer.matrix(torch.arange(network.n)).reshape(-1)
        values = torch.linalg.eigvalsh(g[at[:, None], at])
        total = float(values.sum())
        assert row["trace_share"] == pytest.approx(total / trace)
        assert row["spectrum"]["largest"] == pytest.approx(float(values[-1]))
        assert row["spectrum"]["effective_rank"] == pytest.approx(
            total**2 / float(values.square().sum())
        )
        best = values.flip(0).cumsum(0)
        held = row["spectrum"]["directions_99"]
        assert best[held - 1] >= 0.99 * total * (1 - 1e-9)
        assert held == 1 or best[held - 2] < 0.99 * total
        d = torch.zeros_like(w)
        d[at] = -w[at]
        short = d[: network.n_parameters]
        assert row["removal"]["predicted"] == pytest.approx(float(short @ g @ short))
        gap = output_map(network.logits(w + d, x), "hellinger") - phi
        assert row["removal"]["measured"] == pytest.approx(float(gap.square().sum(1).mean()))
    assert sum(row["trace_share"] for row in found["layers"]) == pytest.approx(1)
    assert found["spectrum"]["directions"] == network.n_parameters
    assert found["spectrum"]["largest"] == pytest.approx(float(torch.linalg.eigvalsh(g)[-1]))
    if isinstance(x, dict):  # torch-pruning traces no network whose inputs are a mapping
        assert found["units"] == []
        return
    units = find_units(network, x)
    assert {one["layer"] for one in found["units"]} == {one.layer for one in units.values()}
    for one in found["units"]:
        for row in one["units"]:
            places = units[one["layer"]].consumer_places([row["unit"]])
            d = torch.zeros_like(w)
            d[places] = w[places]
            short = d[: network.n_parameters]
            assert row["predicted"] == pytest.approx(float(short @ g @ short))
            assert 0 <= row["compensated"] <= row["predicted"]


def test_a_unit_that_nobody_reads_costs_nothing() -> None:
    network = tiny(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    w = network.initial.clone()
    w[find_units(network, vectors())["0"].consumer_places([2])] = 0
    (one,) = findings(network, w, vectors(), "tempered")["units"]
    row = next(row for row in one["units"] if row["unit"] == 2)
    assert row == {"unit": 2, "predicted": 0.0, "compensated": 0.0, "measured": 0.0}
    assert all(other["measured"] > 0 for other in one["units"] if other is not row)


def test_units_that_are_gone_are_left_out() -> None:
    network = tiny(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    w = network.initial.clone()
    find_units(network, vectors())["0"].clear(w, [1, 4])
    found = findings(network, w, vectors(), "tempered")
    (one,) = found["units"]
    assert one["gone"] == 2
    assert [row["unit"] for row in one["units"]] == [0, 2, 3, 5]
    assert found["layers"][0]["zeros"] == pytest.approx(1 / 3)


def test_outputs_that_stop_being_finite_are_not_a_number() -> None:
    torch.manual_seed(0)
    network = Network(Cosine().double())
    found = findings(network, network.initial, vectors(), "tempered")
    assert found["layers"][0]["removal"]["measured"] is None
    assert found["layers"][1]["removal"]["measured"] > 0
    json.dumps(found, allow_nan=False)


def test_a_network_that_cannot_be_traced_is_inspected_without_units() -> None:
    torch.manual_seed(0)
    network = Network(Untraced().double())
    found = findings(network, network.initial, vectors(), "tempered")
    assert found["units"] == []
    assert "cannot trace this network" in found["refused"]["all layers"]
    assert len(found["layers"]) == 2


def test_a_file(digits: Path) -> None:
    inspection = inspect(digits / "a.pt")
    found = inspection.to_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert inspection == inspect(Expert.load(digits / "a.pt"))
    assert (found["architecture"], found["recognised"]) == ("lenet-300-100", "mlp")
    assert (found["file"], found["manifold"]) == ("a.pt", "digits")
    (row,) = evaluate(digits / "a.pt", ["digits"], split="select")["tasks"]
    assert found["held_out_inputs"] == row["examples"]
    assert found["accuracy"] == pytest.approx(row["accuracy"])
    first = found["units"][0]
    assert (first["count"], first["measured"]) == (300, 64)
    by_cost = sorted(first["units"], key=lambda row: row["predicted"])
    assert None not in (by_cost[0]["measured"], by_cost[-1]["measured"])
    assert all(one["correlation"] > 0.7 for one in found["units"])
    assert found["masks"][0]["agreement"] > found["masks"][len(LEVELS) - 1]["agreement"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": 0}, "`inputs` to be 1 or more, got 0"),
        ({"output": "temperd"}, "did you mean 'tempered'"),
    ],
)
def test_options_that_cannot_be(digits: Path, options: dict, message: str) -> None:
    with pytest.raises(OptionError) as error:
        inspect(digits / "a.pt", **options)
    assert message in str(error.value)
