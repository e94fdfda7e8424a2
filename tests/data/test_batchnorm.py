from __future__ import annotations

import torch
from torch import nn

from geomerge import Network
from geomerge.data import Inputs, Normalisation
from geomerge.data.batchnorm import has_statistics, re_estimate

NONE = Normalisation((0.0,), (1.0,))


def test_statistics_become_those_of_all_inputs_mixed() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 2))
    network = Network(module)
    assert has_statistics(network)
    assert not has_statistics(Network(nn.Linear(3, 2)))
    parts = [torch.randn(250, 3) + 2, 3 * torch.randn(250, 3)]
    w = re_estimate(network, network.initial, [Inputs(x, NONE) for x in parts])
    both = torch.cat(parts)
    found = network.unravel(w)
    torch.testing.assert_close(found["0.running_mean"], both.mean(dim=0))
    torch.testing.assert_close(found["0.running_var"], both.var(dim=0))
    assert not network.module.training
    assert not any(layer.training for layer in network.module)
    assert network.module[0].momentum == 0.1
    before = network.unravel(network.initial)
    for name in network.shapes:
        if "running" not in name:
            assert torch.equal(found[name], before[name])
    assert torch.equal(before["0.running_mean"], torch.zeros(3))
