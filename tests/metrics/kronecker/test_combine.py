from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from geomerge import Network
from geomerge.metrics import combine
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.metrics.kronecker.factor import factorise
from geomerge.metrics.kronecker.metric import _sum
from geomerge.testing import dense_kronecker


def test_the_sum_is_exact_where_one_factor_is_common() -> None:
    torch.manual_seed(0)
    network = Network(nn.Linear(4, 3).double())  # logits: the outputs' factor is the identity
    w = network.initial.double()
    x, y = torch.randn(2, 30, 4, dtype=torch.float64)
    one, two = (estimate_kronecker(network, w, [z], "logits", sign_vectors=None) for z in (x, y))
    total = dense_kronecker(one) + dense_kronecker(two)
    torch.testing.assert_close(dense_kronecker(combine([one, two])), total)
    assert combine([one]) is one


def test_the_order_of_layers_does_not_matter_and_traces_add_up() -> None:
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)).double())
    w = network.initial.double()
    x, y = torch.randn(2, 30, 4, dtype=torch.float64)
    one, two = (estimate_kronecker(network, w, [z]) for z in (x, y))
    turned = replace(two, layers=two.layers[::-1])
    both = dense_kronecker(combine([one, two]))
    torch.testing.assert_close(dense_kronecker(combine([one, turned])), both)
    torch.testing.assert_close(combine([one, two]).diagonal, one.diagonal + two.diagonal)
    assert float(torch.linalg.eigvalsh(both).min()) > -1e-12


def test_few_eigenvectors_are_added_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(12, 12, generator=generator).double() for _ in range(2)]
    factors = [factorise(m @ m.T).truncated(2) for m in matrices]
    total = _sum(factors, 0.5)
    assert total.vectors.shape == (12, 4)  # not all twelve
    assert torch.allclose(total.dense(), (factors[0].dense() + factors[1].dense()) / 2)
