"""ZipIt: merging of correlated units."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from geomerge.comparison import METHODS
from geomerge.comparison.context import NotApplicableError
from geomerge.comparison.methods.zipit import match_pairs
from geomerge.testing.method_laws import MethodLaws, method_case, small_mlp, small_normed_cnn


class TestZipit(MethodLaws):
    name = "zipit"


class TestZipitOfConvolutions(MethodLaws):
    name = "zipit"

    def make_network(self) -> nn.Module:
        return small_normed_cnn()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x.flatten(1)).relu()
        return self.head(x + self.second(x).relu())


def test_pairs_are_the_most_correlated_of_those_left() -> None:
    c = torch.eye(4)
    for i, j, value in ((0, 1, 0.9), (1, 2, 0.95), (0, 3, 0.1), (2, 3, 0.5)):
        c[i, j] = c[j, i] = value
    pairs = {frozenset(pair) for pair in match_pairs(c).tolist()}
    assert pairs == {frozenset({1, 2}), frozenset({0, 3})}


@pytest.mark.parametrize("kind", ["mlp", "normed-cnn"])
def test_zipping_a_network_with_a_permuted_copy_keeps_its_function(kind: str) -> None:
    context = method_case({"mlp": small_mlp, "normed-cnn": small_normed_cnn}[kind], twin=True)
    parts = {k: v.clone() for k, v in context.network.unravel(context.a.weights).items()}
    order = torch.randperm(12 if kind == "mlp" else 5)
    if kind == "mlp":
        outs, read = ["1.weight", "1.bias"], "3.weight"
    else:
        outs = ["0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var"]
        read = "3.weight"
    for name in outs:
        parts[name] = parts[name][order]
    parts[read] = parts[read][:, order]
    context = context.with_expert(replace(context.b, weights=context.network.ravel(parts)))
    zipped = METHODS["zipit"].make(context).answer
    assert isinstance(zipped, torch.Tensor)
    x = context.inputs(context.a)[0].batch(slice(0, 50))
    if kind == "mlp":
        same = context.network.logits(context.a.weights, x)
        torch.testing.assert_close(context.network.logits(zipped, x), same, rtol=1e-4, atol=1e-5)
    trained = slice(0, context.network.n_parameters)  # statistics are measured again
    torch.testing.assert_close(zipped[trained], context.a.weights[trained], rtol=1e-4, atol=1e-5)


def test_a_network_that_is_no_row_of_layers_is_refused() -> None:
    with pytest.raises(NotApplicableError, match="row of Linear and Conv2d layers"):
        METHODS["zipit"].make(method_case(Residual))
