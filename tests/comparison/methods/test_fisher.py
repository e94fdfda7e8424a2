"""Fisher merging and the diagonal Fisher information."""

from __future__ import annotations

import torch

from geomerge.comparison.methods.fisher import diagonal_fisher, fisher_merge
from geomerge.testing.method_laws import MethodLaws, method_case


class TestFisher(MethodLaws):
    name = "fisher"


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_fisher_merging_weighs_by_the_fishers() -> None:
    a, b = randn(6), randn(6, seed=1)
    fisher = randn(6, seed=2).square()
    torch.testing.assert_close(fisher_merge((a, b), (fisher, fisher)), (a + b) / 2)
    zero = torch.zeros(6, dtype=torch.float64)
    torch.testing.assert_close(fisher_merge((a, b), (zero, zero)), (a + b) / 2)
    only = torch.tensor([6.0, 0, 0, 0, 0, 0], dtype=torch.float64)
    merged = fisher_merge((a, b), (only, only.flip(0)))
    torch.testing.assert_close(merged[[0, 5]], torch.stack([a[0], b[5]]), rtol=1e-5, atol=1e-5)


def test_the_fisher_is_the_expected_square_of_the_score() -> None:
    context = method_case()
    network, inputs = context.network, context.inputs(context.a)[0]
    w = context.a.weights.clone().requires_grad_()
    x = inputs.batch(slice(0, len(inputs)))
    truth = torch.zeros_like(context.a.weights)
    for one in x:
        log_p = network.outputs(w, one.unsqueeze(0)).log_softmax(dim=1)[0]
        for c in range(len(log_p)):
            (score,) = torch.autograd.grad(log_p[c], w, retain_graph=True)
            truth += log_p[c].exp().detach() * score.square() / len(x)
    draws = [diagonal_fisher(network, context.a.weights, inputs, seed) for seed in range(40)]
    mean = torch.stack(draws).mean(dim=0)
    assert (mean - truth).norm() < 0.05 * truth.norm()
