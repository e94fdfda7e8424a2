"""Directions toward several teachers on mixed batches, with the batches' own statistics."""

from __future__ import annotations

import copy

import torch
from torch import nn

from geomerge import Network
from geomerge.data import Inputs, Normalisation
from geomerge.data.batchnorm import batch_statistics
from geomerge.walks.mixed_batches import KLToTeachers
from geomerge.walks.objectives import KLToTeacher, log_probabilities

NONE = Normalisation((0.0,), (1.0,))


def network_of(seed: int) -> Network:
    torch.manual_seed(seed)
    return Network(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5)))


def direction_of(network: Network, batch: int = 8) -> KLToTeachers:
    parts = []
    for k, columns in enumerate((slice(0, 2), slice(2, 5))):
        view = network.head_view(columns)
        x = torch.randn(32, 4, generator=torch.Generator().manual_seed(k)) + 3 * k
        inputs = Inputs(x, NONE)
        targets = log_probabilities(view, network_of(9).initial, inputs)
        parts.append((columns, KLToTeacher(view, targets, inputs, batch, 0)))
    return KLToTeachers(network, parts)


def test_direction_descends_the_mean_divergence_in_training_mode() -> None:
    network = network_of(0)
    w = network.initial
    distance, v = direction_of(network)(w)

    module = copy.deepcopy(network.module_at(w)).train()
    drawn = [part.draw() for _, part in direction_of(network)._parts]
    logits = module(torch.cat([x for x, _ in drawn]))
    pieces = (logits[:8, :2], logits[8:, 2:])
    loss = sum(loss_of(part) for part, (_, loss_of) in zip(pieces, drawn, strict=True)) / 2
    loss.backward()
    wanted = torch.cat([p.grad.flatten() for p in module.parameters()])
    torch.testing.assert_close(v[: network.n_parameters], -wanted)
    torch.testing.assert_close(distance, float(loss.detach()))
    assert not v[network.n_parameters :].any()


def test_running_statistics_stay_and_evaluation_mode_returns() -> None:
    network = network_of(0)
    w, x = network.initial, torch.randn(16, 4) + 5
    before, kept = network.logits(w, x), w.clone()
    with batch_statistics(network):
        inside = network.logits(w, x)
    direction_of(network)(w)
    assert not torch.allclose(inside, before)
    assert torch.equal(network.logits(w, x), before)
    assert torch.equal(w, kept)
    assert int(network.module[1].num_batches_tracked) == 0


def test_skipped_batches_are_those_of_the_steps_before() -> None:
    network = network_of(0)
    one, other = direction_of(network), direction_of(network)
    for _ in range(3):
        one(network.initial)
    other.skip(3)
    assert one(network.initial)[0] == other(network.initial)[0]
