from __future__ import annotations

import pytest
import torch

from geomerge import Network
from geomerge.data import Inputs, Split, as_they_are
from geomerge.metrics import functional_change
from geomerge.networks.batches import Batch
from geomerge.pruning.held_out import hold_out


@pytest.fixture
def single(case: tuple[Network, Batch]) -> tuple[Network, Inputs]:
    """A network in float32, in which inputs are given out."""
    network, x = case
    return Network(network.module.float()), as_they_are(x)


def moved(network: Network, share: float) -> torch.Tensor:
    torch.manual_seed(3)
    return network.initial + share * torch.randn_like(network.initial)


def test_change_is_that_of_the_outputs(single: tuple[Network, Inputs]) -> None:
    network, inputs = single
    labels = torch.arange(7) % 3
    split = Split(inputs, labels)
    held_out = hold_out(network, network.initial, split, "tempered")
    x = inputs.batch(slice(None))
    assert len(held_out) == 7
    same = held_out.compare(network.initial)
    assert (same.drift, same.agreement, same.accuracy) == (0, 1, held_out.accuracy)
    w = moved(network, 0.5)
    before, after = (network.logits(v, x) for v in (network.initial, w))
    change = held_out.compare(w)
    assert change.drift == pytest.approx(functional_change(before, after, "tempered"))
    same_label = before.argmax(dim=1) == after.argmax(dim=1)
    assert change.agreement == pytest.approx(float(same_label.double().mean()))
    right = after.argmax(dim=1) == labels
    assert change.accuracy == pytest.approx(float(right.double().mean()))
    few = held_out.first(3)
    assert len(few) == 3
    assert torch.equal(few.logits(w), held_out.logits(w)[:3])


def test_a_meter_measures_step_by_step(single: tuple[Network, Inputs]) -> None:
    network, inputs = single
    held_out = hold_out(network, network.initial, Split(inputs, torch.zeros(7)), "logits")
    points = [moved(network, share) for share in (0.0, 0.1, 0.3)]
    meter = held_out.step_meter()
    logits = [held_out.logits(w) for w in points]
    for k in (0, 1):
        measured = meter(points[k], points[k + 1])
        assert measured == functional_change(logits[k], logits[k + 1], "logits")
    # Another walk may begin anywhere.
    assert meter(points[0], points[2]) == functional_change(logits[0], logits[2], "logits")
