"""Weight matching and REPAIR."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from geomerge.comparison import METHODS
from geomerge.comparison.context import NotApplicableError
from geomerge.testing.method_laws import MethodLaws, method_case, small_normed_cnn


class TestWeightMatching(MethodLaws):
    name = "weight-matching"


class TestActivationMatching(MethodLaws):
    name = "activation-matching"


class TestRepair(MethodLaws):
    name = "repair"

    def make_network(self) -> nn.Module:
        return small_normed_cnn()


def test_statistics_measured_again_are_those_of_both_tasks() -> None:
    context = method_case(small_normed_cnn)
    plain, reset = (METHODS[k].make(context) for k in ("weight-matching", "repair"))
    n = context.network.n_parameters
    assert isinstance(plain.answer, torch.Tensor)
    assert isinstance(reset.answer, torch.Tensor)
    assert not torch.equal(plain.answer[n:], reset.answer[n:])


def test_repair_needs_running_statistics() -> None:
    with pytest.raises(NotApplicableError, match="no BatchNorm statistics"):
        METHODS["repair"].make(method_case())
