from __future__ import annotations

import torch
from torch import nn

from geomerge import Network
from geomerge.data import as_they_are
from geomerge.metrics.kronecker.coverage import find_coverage
from geomerge.metrics.kronecker.estimate import estimate_kronecker, parts_of


def test_a_metric_measured_in_parts_is_the_same() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 12), nn.LayerNorm(12), nn.Linear(12, 5),
    )  # fmt: skip
    network = Network(module)
    inputs = as_they_are(torch.randn(30, 1, 8, 8))
    whole = estimate_kronecker(network, network.initial, inputs.equal_batches(8))
    for limit in (1, 20_000):
        view = network.limited(500, limit)
        parts = estimate_kronecker(view, network.initial, inputs.equal_batches(8))
        assert parts.diagonal_only == whole.diagonal_only
        torch.testing.assert_close(parts.diagonal, whole.diagonal, rtol=0, atol=0)
        for one, other in zip(parts.layers, whole.layers, strict=True):
            assert one.name == other.name
            for side in ("inputs", "outputs"):
                found, expected = getattr(one, side), getattr(other, side)
                torch.testing.assert_close(found.vectors, expected.vectors, rtol=0, atol=0)
                torch.testing.assert_close(found.values, expected.values, rtol=0, atol=0)
    once = estimate_kronecker(network, network.initial, iter([inputs.batch(slice(None))]))
    assert len(once.layers) == len(whole.layers)


def test_a_metric_of_some_weights_is_that_part_of_the_whole() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4),
        nn.Flatten(), nn.Linear(64, 5),
    )  # fmt: skip
    network = Network(module)
    x = [torch.randn(30, 1, 8, 8)]
    whole = estimate_kronecker(network, network.initial, x)
    names = ["3.weight", "4.bias", "6.weight", "6.bias"]
    some = estimate_kronecker(network, network.initial, x, names=names)
    assert [layer.name for layer in some.layers] == ["3", "6"]
    assert some.diagonal_only == ("4.bias",)
    diagonals = dict(zip(whole.diagonal_only, whole.diagonals, strict=True))
    torch.testing.assert_close(some.diagonal, diagonals["4.bias"][1])
    expected = {layer.name: layer for layer in whole.layers}
    for layer in some.layers:
        for side in ("inputs", "outputs"):
            found = getattr(layer, side).matrix()
            torch.testing.assert_close(found, getattr(expected[layer.name], side).matrix())


def test_layers_are_parted_by_the_bytes_of_their_moments() -> None:
    network = Network(nn.Sequential(*[nn.Linear(9, 9) for _ in range(4)]))
    coverage = find_coverage(network, network.initial, torch.randn(1, 9))
    sizes = [len(part) for part in parts_of(coverage, 2 * 8 * (81 + 100))]
    assert sizes == [2, 2]
    assert [len(part) for part in parts_of(coverage, 1)] == [1, 1, 1, 1]
    assert [len(part) for part in parts_of(coverage, None)] == [4]
