"""Directions are half the steepest descents of what they say they measure."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from geomerge import Network
from geomerge.data import Inputs, Normalisation, Split
from geomerge.metrics import functional_change, output_map
from geomerge.metrics.outputs import OUTPUTS, TEMPERATURE
from geomerge.networks.batches import Batch, batch_size, take
from geomerge.walks.objectives import CrossEntropy, MixupDrift, Objective, OutputDrift

Case = tuple[Network, Batch]


def inputs_of(x: Batch) -> Inputs:
    class Exact(Inputs):
        def batch(self, index: torch.Tensor | slice) -> Batch:
            return take(self.raw, index)

    return Exact(x, Normalisation((0.0,), (1.0,)))


def moved(network: Network) -> torch.Tensor:
    step = torch.randn(network.n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step[network.n_parameters :] = 0
    return network.initial + 0.1 * step


@pytest.mark.parametrize("output", OUTPUTS)
def test_toward_outputs_is_half_the_descent_of_the_functional_change(
    case: Case, output: str
) -> None:
    network, x = case
    w, start = moved(network), network.initial
    phi_0 = output_map(network.logits(start, x), output)
    drift, v = OutputDrift(network, phi_0, inputs_of(x), output, batch_size(x), 0)(w)
    before = network.logits(start, x)
    assert 2 * drift == pytest.approx(functional_change(before, network.logits(w, x), output))
    step = 1e-6 * torch.randn(network.n, dtype=torch.float64)
    step[network.n_parameters :] = 0
    ends = [functional_change(before, network.logits(w + s * step, x), output) for s in (1, -1)]
    assert ends[0] - ends[1] == pytest.approx(-4 * float(v @ step), rel=1e-4)
    assert (v[network.n_parameters :] == 0).all()


def test_where_nothing_has_drifted_nothing_pulls(case: Case) -> None:
    network, x = case
    inputs, count = inputs_of(x), batch_size(x)
    phi_0 = output_map(network.logits(network.initial, x), "tempered")
    directions: list[Objective] = [OutputDrift(network, phi_0, inputs, "tempered", count, 0)]
    if inputs.continuous:
        directions.append(MixupDrift(network, network.initial, inputs, "tempered", count, 0, 0.5))
    for direction in directions:
        drift, v = direction(network.initial)
        assert drift == pytest.approx(0, abs=1e-20)
        assert float(v.norm()) == pytest.approx(0, abs=1e-12)


def test_mixtures_repeat_with_the_seed_and_only_with_it(case: Case) -> None:
    network, x = case
    if not inputs_of(x).continuous:
        pytest.skip("tokens cannot be mixed")
    w = moved(network)

    def first(seed: int) -> float:
        direction = MixupDrift(
            network, network.initial, inputs_of(x), "hellinger", batch_size(x), seed, 0.5
        )
        return direction(w)[0]

    assert first(0) == first(0)
    assert first(0) != first(1)


def test_toward_labels_descends_the_cross_entropy(case: Case) -> None:
    network, x = case
    labels = torch.arange(batch_size(x)) % 3
    loss, v = CrossEntropy(network, Split(inputs_of(x), labels), batch_size(x), 0)(network.initial)
    logits = network.logits(network.initial, x)
    assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)))
    later = network.logits(network.initial + 1e-3 * v, x)
    assert float(torch.nn.functional.cross_entropy(later, labels)) < loss


def test_temperature_leads_from_fisher_to_centred_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    other = one + 1e-4 * torch.randn(5, 4, generator=generator, dtype=torch.float64)
    gap = (other - one) - (other - one).mean(dim=1, keepdim=True)
    flat = 1e-3 * one, 1e-3 * one + (other - one)  # almost equal logits: the limit of large T
    centred = float(gap.square().sum(dim=1).mean()) / 4
    assert functional_change(*flat, "tempered") == pytest.approx(centred, rel=1e-2)
    assert TEMPERATURE > 1


def test_inputs_of_two_shapes_are_passed_one_after_the_other() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = Network(module)
    labels = torch.arange(6) % 4
    small, large = (
        CrossEntropy(network, Split(inputs_of(torch.randn(6, 1, n, n)), labels), 6, 0)
        for n in (8, 12)
    )
    assert small.passes_with(small)
    assert not small.passes_with(large)
