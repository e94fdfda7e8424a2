from __future__ import annotations

import pytest
import torch

from geomerge.errors import OptionError
from geomerge.metrics import EuclideanMetric, functional_change, output_map


def test_hellinger_pullback_is_the_fisher_metric() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 5, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda f: output_map(f, "hellinger"), logits)
    j = jacobian.reshape(5, 5)
    p = torch.softmax(logits, 1).squeeze()
    torch.testing.assert_close(j.T @ j, torch.diag(p) - torch.outer(p, p))


def test_softmax_gives_probabilities_whose_metric_is_the_square_of_fishers() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 5, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda f: output_map(f, "softmax"), logits)
    j = jacobian.reshape(5, 5)
    p = torch.softmax(logits, 1).squeeze()
    fisher = torch.diag(p) - torch.outer(p, p)
    torch.testing.assert_close(j.T @ j, fisher @ fisher)
    assert functional_change(logits, logits + 2, "softmax") == pytest.approx(0, abs=1e-20)


def test_hellinger_has_finite_gradients_where_probabilities_vanish() -> None:
    logits = torch.tensor([[300.0, -300.0, 0.0]], requires_grad=True)
    output_map(logits, "hellinger").sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_functional_change_is_bounded_and_zero_for_equal_outputs() -> None:
    one, other = torch.tensor([[99.0, -99.0]]), torch.tensor([[-99.0, 99.0]])
    assert functional_change(one, one, "hellinger") == 0
    assert functional_change(one, other, "hellinger") == pytest.approx(8)
    assert functional_change(one, one + 2, "logits") == pytest.approx(8)


def test_unknown_output_names_the_closest() -> None:
    with pytest.raises(OptionError, match="did you mean 'hellinger'"):
        output_map(torch.zeros(1, 2), "helinger")


def test_euclidean_metric_is_the_identity() -> None:
    v = torch.randn(9)
    metric = EuclideanMetric()
    assert metric.inner(v, v) == pytest.approx(float(v @ v), rel=1e-6)
    assert torch.equal(metric.coordinates(v).compose([v]), v)
