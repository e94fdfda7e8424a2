from __future__ import annotations

import torch

from geomerge.comparison.methods.dare import drop_and_rescale
from geomerge.testing.method_laws import MethodLaws


class TestDare(MethodLaws):
    name = "dare"


def test_a_thinned_vector_is_the_vector_on_average() -> None:
    vector = torch.linspace(1, 2, 40_000, dtype=torch.float64)
    thin = drop_and_rescale(vector, torch.Generator().manual_seed(0), 0.75)
    assert abs(float((thin != 0).double().mean()) - 0.25) < 0.01
    torch.testing.assert_close(thin.mean(), vector.mean(), rtol=0.03, atol=0)
