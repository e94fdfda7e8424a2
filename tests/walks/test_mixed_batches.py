"""Directions toward several teachers on mixed batches, with the batches' own statistics."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from geomerge import Network
from geomerge.data import Inputs, Normalisation
from geomerge.data.batchnorm import batch_statistics
from geomerge.networks.batches import Batch
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


def test_every_teacher_answers_for_the_whole_batch() -> None:
    network, teacher = network_of(0), network_of(9)
    parts = []
    for k, columns in enumerate((slice(0, 2), slice(2, 5))):
        view = network.head_view(columns)
        x = torch.randn(32, 4, generator=torch.Generator().manual_seed(k)) + 3 * k

        def targets(x: Batch, view: Network = view) -> Tensor:
            return view.logits(teacher.initial, x).log_softmax(dim=1)

        parts.append((columns, KLToTeacher(view, targets, Inputs(x, NONE), 8, 0)))
    distance, v = KLToTeachers(network, parts, answers_all=True)(network.initial)

    module = copy.deepcopy(network.module_at(network.initial)).train()
    first = [KLToTeacher(part.network, part._targets, part._inputs, 8, 0) for _, part in parts]
    drawn = [part.draw()[0] for part in first]
    x = torch.cat(drawn)
    logits, wanted = module(x), teacher.logits(teacher.initial, x)
    losses = []
    for columns, rows in ((slice(0, 2), slice(0, 8)), (slice(2, 5), slice(8, 16))):
        divergences = nn.functional.kl_div(
            logits[:, columns].log_softmax(dim=1), wanted[:, columns].log_softmax(dim=1),
            log_target=True, reduction="none",
        ).sum(dim=1)  # fmt: skip
        losses += [divergences[rows].mean(), divergences.mean()]
    loss = torch.stack(losses).mean()
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in module.parameters()])
    torch.testing.assert_close(v[: network.n_parameters], -gradient)
    torch.testing.assert_close(distance, float(loss.detach()))


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
