"""Either network, averages, ensemble, line and arcs."""

from __future__ import annotations

from dataclasses import replace

import torch

from geomerge.comparison import METHODS
from geomerge.comparison.methods.simple import mean_of_softmax, slerp
from geomerge.testing.method_laws import MethodLaws, method_case, small_normed_cnn


class TestA(MethodLaws):
    name = "a"


class TestB(MethodLaws):
    name = "b"


class TestEnsemble(MethodLaws):
    name = "ensemble"


class TestAverage(MethodLaws):
    name = "average"


class TestStraightLine(MethodLaws):
    name = "straight-line"


class TestSlerp(MethodLaws):
    name = "slerp"


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_slerp_goes_from_end_to_end_on_the_sphere() -> None:
    a, b = randn(7), randn(7, seed=1)
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.equal(slerp(a, b, 1.0), b)
    one, two = a / a.norm(), b / b.norm()
    half = slerp(one, two, 0.5)
    torch.testing.assert_close(half.norm(), half.new_ones(()))
    torch.testing.assert_close(half @ one, half @ two)
    for t in (0.2, 0.5, 0.9):
        torch.testing.assert_close(slerp(a, a, t), a)
        torch.testing.assert_close(slerp(a, 3 * a, t), (1 + 2 * t) * a)
        torch.testing.assert_close(slerp(a * 0, a, t), t * a)


def test_the_ensemble_of_a_network_with_itself_answers_as_it_does() -> None:
    context = method_case()
    x = context.inputs(context.a)[0].batch(slice(0, 50))
    answers = mean_of_softmax(context.a.weights, context.a.weights)(context.a, x).argmax(dim=1)
    assert torch.equal(answers, context.network.logits(context.a.weights, x).argmax(dim=1))


def test_measuring_statistics_counts_as_using_inputs() -> None:
    context = method_case(small_normed_cnn)
    METHODS["average"].make(context)
    assert context.measured == set()
    space = replace(context.space, bn="re-estimate")
    context = replace(context, prepared=replace(context.prepared, space=space))
    METHODS["weight-matching"].make(context)
    assert context.measured == set()
    METHODS["average"].make(context)
    assert context.measured == {"a", "b"}
