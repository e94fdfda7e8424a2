"""ZipIt: merging of correlated units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import Tensor, nn
from unit_networks import Between, Grouped, Joined, TiedNormed

from geomerge.alignment.groups import find_groups, permute
from geomerge.comparison import METHODS
from geomerge.comparison.context import Context, NotApplicableError
from geomerge.comparison.methods.zipit import match_pairs
from geomerge.data.batchnorm import re_estimate
from geomerge.errors import Problems
from geomerge.merging.options import MergeOptions
from geomerge.merging.prepare import prepare
from geomerge.testing.method_laws import MethodLaws, method_case, small_mlp, small_normed_cnn


class TestZipit(MethodLaws):
    name = "zipit"


class TestZipitOfConvolutions(MethodLaws):
    name = "zipit"

    def make_network(self) -> nn.Module:
        return small_normed_cnn()


class TestZipitOfResidualStreams(MethodLaws):
    name = "zipit"

    def make_network(self) -> nn.Module:
        return TiedNormed()


def resnet18(norm: Callable[[int], nn.Module]) -> nn.Module:
    """A ResNet-18 without units that are zero on all inputs, which correlate with none."""
    module = torchvision.models.resnet18(num_classes=3, norm_layer=norm)
    module.conv1 = nn.Conv2d(2, 64, 3, padding=1, bias=False)
    for layer in module.modules():
        if hasattr(layer, "relu"):
            layer.relu = nn.LeakyReLU(0.1)
    return module


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": small_mlp,
    "batchnorm": small_normed_cnn,
    "residual, depthwise, layernorm": TiedNormed,
    "residual, groupnorm": Grouped,
    "side by side": Joined,
}


def with_permuted_b(context: Context, seed: int = 3) -> Context:
    """The case with the hidden units of b in another order."""
    generator = torch.Generator().manual_seed(seed)
    w = context.b.weights.clone()
    example = context.inputs(context.b)[0].batch(slice(0, 2))
    for group in find_groups(context.network, w, example)[0]:
        permute(group, group.random(generator), w)
    assert not torch.equal(w, context.b.weights)
    return context.with_expert(replace(context.b, weights=w))


def zipped(context: Context) -> Tensor:
    answer = METHODS["zipit"].make(context).answer
    assert isinstance(answer, Tensor)
    return answer


def outputs(context: Context, w: Tensor, of: str = "a") -> Tensor:
    """Return the outputs of a network on inputs of both tasks, with its statistics measured."""
    both = context.inputs(context.a, context.b)
    w = re_estimate(context.network, w, both)
    return torch.cat([context.space[of].network.logits(w, x.batch(slice(0, 50))) for x in both])


def test_pairs_are_the_most_correlated_of_those_left() -> None:
    c = torch.eye(4)
    for i, j, value in ((0, 1, 0.9), (1, 2, 0.95), (0, 3, 0.1), (2, 3, 0.5)):
        c[i, j] = c[j, i] = value
    pairs = {frozenset(pair) for pair in match_pairs(c).tolist()}
    assert pairs == {frozenset({1, 2}), frozenset({0, 3})}


@pytest.mark.parametrize("name", NETWORKS)
def test_zipping_a_network_with_a_permuted_copy_keeps_its_function(name: str) -> None:
    context = with_permuted_b(method_case(NETWORKS[name], twin=True))
    same = outputs(context, context.a.weights)
    torch.testing.assert_close(outputs(context, zipped(context)), same, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda channels: nn.GroupNorm(8, channels)])
def test_zipping_a_resnet_with_a_permuted_copy_keeps_its_function(
    norm: Callable[[int], nn.Module],
) -> None:
    context = with_permuted_b(method_case(lambda: resnet18(norm), twin=True))
    same = outputs(context, context.a.weights)
    torch.testing.assert_close(outputs(context, zipped(context)), same, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make", [small_normed_cnn, TiedNormed])
def test_separate_heads_read_the_merged_units_as_their_own_network_did(
    make: Callable[[], nn.Module],
) -> None:
    context, other = method_case(make, twin=True), method_case(make)
    parts = context.network.unravel(context.b.weights.clone())
    heads = other.network.unravel(other.b.weights)
    last = "head" if make is TiedNormed else "6"
    w = context.network.ravel(
        {k: heads[k] if k.startswith(f"{last}.") else x for k, x in parts.items()}
    )
    context = context.with_expert(replace(context.b, weights=w))
    prepared = prepare(
        list(context.space), MergeOptions(head="separate", bn="keep"), Problems(strict=True)
    )
    assert prepared is not None
    context = with_permuted_b(replace(context, prepared=prepared))
    w = zipped(context)
    for expert in context.space:
        same = outputs(context, expert.weights, expert.name)
        torch.testing.assert_close(outputs(context, w, expert.name), same, rtol=1e-4, atol=1e-5)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.gated = nn.Linear(32, 5), Between("gate", 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.gated(self.first(x.flatten(1)).relu())


def test_units_of_no_group_are_refused_with_the_reason() -> None:
    with pytest.raises(NotApplicableError, match=r"those of gated\.first cannot be merged: they"):
        METHODS["zipit"].make(method_case(Gated))
