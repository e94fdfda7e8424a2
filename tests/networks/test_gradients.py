from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from geomerge.networks import gradients


class Odd(nn.Module):
    """Uses one matrix twice in linear layers and once otherwise, and one not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 3)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.linear(input=torch.tanh(self.twice(x)), weight=self.twice.weight)
        out: Tensor = self.head(x + self.twice.weight.diagonal())
        return out


@pytest.mark.parametrize("shape", [(5, 4), (5, 2, 4)])
@pytest.mark.parametrize("large", [1, 16, 10**9])
def test_gradients_written_are_those_of_autograd(
    large: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradients, "LARGE", large)
    torch.manual_seed(0)
    module, x = Odd().double(), torch.randn(*shape, dtype=torch.float64)
    parameters = list(module.parameters())
    truth = torch.autograd.grad(
        module(x).square().sum(), parameters, allow_unused=True, materialize_grads=True
    )
    out = torch.full((sum(p.numel() for p in parameters),), torch.nan, dtype=torch.float64)
    value = gradients.gradients_into(out, parameters, lambda: module(x).square().sum())
    assert float(value.detach()) == pytest.approx(float(module(x).square().sum().detach()))
    torch.testing.assert_close(out, torch.cat([part.reshape(-1) for part in truth]))
