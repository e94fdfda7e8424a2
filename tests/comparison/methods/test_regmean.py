"""RegMean: least squares in each matrix layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import geomerge as gm
from geomerge.comparison.methods.regmean import layer_grams, regress, regression_mean
from geomerge.comparison.registry import METHODS
from geomerge.errors import Problems
from geomerge.merging.options import MergeOptions
from geomerge.merging.prepare import prepare
from geomerge.testing.method_laws import MethodLaws, method_case, small_normed_cnn


class TestRegmean(MethodLaws):
    name = "regmean"


class TestRegmeanPlusPlus(MethodLaws):
    name = "regmean++"

    def make_network(self) -> nn.Module:
        return small_normed_cnn()


class TestRegmeanOfConvolutions(MethodLaws):
    name = "regmean"

    def make_network(self) -> nn.Module:
        return small_normed_cnn()


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_regmean_minimises_its_least_squares() -> None:
    xs = [randn(40, 5), 2 * randn(30, 5, seed=1)]
    ws = [randn(5, 3, seed=2), randn(5, 3, seed=3)]
    grams = [x.T @ x for x in xs]
    wanted = torch.cat([x @ w for x, w in zip(xs, ws, strict=True)])
    brute = torch.linalg.lstsq(torch.cat(xs), wanted).solution
    torch.testing.assert_close(regression_mean(ws, grams), brute, rtol=1e-6, atol=1e-6)
    mean = (ws[0] + ws[1]) / 2
    torch.testing.assert_close(regression_mean(ws, [grams[0]] * 2), mean)
    thin = [g * torch.outer(k := torch.arange(5) < 3, k) for g in grams]
    merged = regression_mean(ws, thin)
    torch.testing.assert_close(merged[3:], mean[3:])  # directions without inputs are averaged


def test_singular_gram_matrices_may_be_rounded_below_zero() -> None:
    q = torch.linalg.qr(randn(5, 5)).Q
    ws = [randn(5, 3, seed=2), randn(5, 3, seed=3)]
    largest = [torch.tensor([3.0, 2.0, 1.0]), torch.tensor([0.5, 1.0, 4.0])]

    def grams(*smallest: list[float]) -> list[torch.Tensor]:
        pairs = zip(largest, smallest, strict=True)
        values = [torch.cat([some, torch.tensor(few)]).double() for some, few in pairs]
        return [(q * v) @ q.T for v in values]

    exact = regression_mean(ws, grams([0.0, 0.0], [0.0, 0.0]))
    rounded = regression_mean(ws, grams([-1e-5, 4e-6], [-2e-5, 5e-6]))
    torch.testing.assert_close(rounded, exact, rtol=1e-4, atol=1e-4)


def test_gram_matrices_are_those_of_the_layers_inputs() -> None:
    context = method_case()
    inputs = context.inputs(context.a)[0]
    x = inputs.batch(slice(0, len(inputs))).flatten(1)
    rows = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    grams = layer_grams(context.network, context.a.weights, inputs)
    assert set(grams) == {"1", "3"}
    torch.testing.assert_close(grams["1"], (rows.T @ rows).double(), rtol=1e-5, atol=1e-3)


def test_inputs_of_a_layer_come_through_the_layers_merged_before() -> None:
    context = method_case()
    experts = [context.a, context.b]
    grams = [
        layer_grams(e.network, e.weights, x)
        for e, x in zip(experts, context.inputs(*experts), strict=True)
    ]
    mean = context.space.middle()
    alone = regress(experts, grams, mean, 1.0)
    chained = regress(experts, grams, mean, 1.0, through=True)
    network = context.network
    first, last = network.slices["1.weight"], network.slices["3.weight"]
    torch.testing.assert_close(chained[first], alone[first])  # nothing is merged before it
    seen = [layer_grams(network, chained, x, "3")["3"] for x in context.inputs(*experts)]
    matrices = [
        torch.cat(
            [e.weights[last].view(3, 12), e.weights[network.slices["3.bias"]][:, None]], dim=1
        ).T.double()
        for e in experts
    ]
    wanted = regression_mean(matrices, seen)[:-1].T.float()
    torch.testing.assert_close(chained[last].view(3, 12), wanted, rtol=1e-4, atol=1e-5)
    kept = regress(experts, grams, mean, 1.0, heads=["3"])
    assert torch.equal(kept[last], mean[last])


def test_rows_of_an_offset_head_are_regressed_and_separate_ones_are_kept() -> None:
    context = method_case()
    means, merged = {}, {}
    for head in ("offset", "separate"):
        prepared = prepare(
            [context.a, context.b], MergeOptions(head=head, bn="keep"), Problems(strict=True)
        )
        assert prepared is not None
        made = METHODS["regmean"].make(replace(context, prepared=prepared)).answer
        assert isinstance(made, torch.Tensor)
        last = prepared.space.network.slices["3.weight"]
        means[head], merged[head] = prepared.space.middle()[last], made[last]
    assert torch.equal(merged["separate"], means["separate"])
    assert not torch.allclose(merged["offset"], means["offset"])


def test_a_conv1d_of_gpt2_merges_as_the_linear_layer_that_it_is() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    torch.manual_seed(0)
    x = torch.randn(40, 5)
    merged = []
    for conv in (False, True):
        points = []
        for seed in (0, 1):
            generator = torch.Generator().manual_seed(seed)
            module = nn.Sequential(conv1d(3, 5) if conv else nn.Linear(5, 3))
            weight = torch.randn(3, 5, generator=generator)
            module[0].weight.data = weight.T.contiguous() if conv else weight
            module[0].bias.data = torch.randn(3, generator=generator)
            own = gm.Expert.from_module(module, inputs=x + seed)
            points.append(own)
        network = points[0].network
        grams = [layer_grams(network, e.weights, e.inputs) for e in points if e.inputs is not None]
        mean = (points[0].weights + points[1].weights) / 2
        w = regress(points, grams, mean, 0.9)
        assert not torch.allclose(w, mean)
        found = network.unravel(w)["0.weight"]
        merged.append(found.T if conv else found)
    torch.testing.assert_close(*merged)
