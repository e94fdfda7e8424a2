from __future__ import annotations

import pytest
import torch
from torch import nn

from geomerge import Network
from geomerge.metrics import exact_metric, gram_metric
from geomerge.networks.batches import Batch
from geomerge.testing import (
    dense_christoffel,
    dense_jacobian,
    dense_metric,
    geodesic_between,
    geodesic_from,
    path_energy,
    path_length,
)
from geomerge.walks.walk import WeightWalkOptions, walk_toward_weights

Case = tuple[Network, Batch]


@pytest.fixture(scope="module")
def smooth() -> Case:
    """17 weights and 40 outputs, so that the metric is regular."""
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double())
    network.initial = torch.randn(network.n).double()
    return network, 2 * torch.randn(20, 2).double()


@pytest.fixture(scope="module")
def followed(smooth: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """A geodesic's points and velocities."""
    network, x = smooth
    g = dense_metric(network, network.initial, x)
    torch.manual_seed(7)
    velocity = 0.25 * torch.randn(network.n).double()
    # Little of it in directions that the metric hardly sees: there a geodesic bends sharply.
    velocity = torch.linalg.solve(g + 0.05 * torch.eye(network.n).double(), g @ velocity)
    return geodesic_from(network, network.initial, velocity, x)


def test_jacobian_agrees_with_central_differences(case: Case) -> None:
    network, x = case
    w, u = network.initial, torch.randn(network.n, dtype=torch.float64)
    moved = [network.outputs(w + s * 1e-5 * u, x) for s in (1, -1)]
    pushed = dense_jacobian(network, w, x) @ u  # by running statistics too
    torch.testing.assert_close(pushed, (moved[0] - moved[1]) / 2e-5, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("output", ["logits", "hellinger"])
def test_christoffel_symbols_are_those_of_the_metric(smooth: Case, output: str) -> None:
    network, x = smooth
    gamma = dense_christoffel(network, network.initial, x, output)
    torch.testing.assert_close(gamma, gamma.transpose(1, 2))

    def slope(i: int) -> torch.Tensor:
        step = torch.zeros(network.n, dtype=torch.float64)
        step[i] = 1e-5
        g = [dense_metric(network, network.initial + s * step, x, output) for s in (1, -1)]
        return (g[0] - g[1]) / 2e-5

    d = torch.stack([slope(i) for i in range(network.n)])  # d[i, j, k] = d_i g_jk
    truth = (d.permute(2, 0, 1) + d.permute(2, 1, 0) - d) / 2
    torch.testing.assert_close(gamma, truth, rtol=1e-6, atol=1e-8)


def test_a_geodesic_solves_its_equation_at_constant_speed(
    smooth: Case, followed: tuple[torch.Tensor, torch.Tensor]
) -> None:
    network, x = smooth
    points, velocities = followed
    speeds = [
        float(u @ dense_metric(network, w, x) @ u) for w, u in zip(points, velocities, strict=True)
    ]
    assert speeds == pytest.approx([speeds[0]] * len(speeds), rel=1e-6)
    middle, step = len(points) // 2, 1 / (len(points) - 1)
    w, u = points[middle], velocities[middle]
    bend = (velocities[middle + 1] - velocities[middle - 1]) / (2 * step)
    turn = torch.einsum("kij,i,j->k", dense_christoffel(network, w, x), u, u)
    force = dense_metric(network, w, x) @ bend
    assert float((force + turn).norm()) < 1e-2 * float(turn.norm())


def test_least_energy_between_its_ends_gives_the_geodesic_back(
    smooth: Case, followed: tuple[torch.Tensor, torch.Tensor]
) -> None:
    network, x = smooth
    points, _ = followed
    found = geodesic_between(network, points[0], points[-1], x, degree=12)
    torch.testing.assert_close(found, points, rtol=0, atol=1e-3)
    least, shortest = path_energy(network, points, x), path_length(network, points, x)
    assert path_energy(network, found, x) == pytest.approx(least, rel=1e-5)
    assert path_length(network, found, x) == pytest.approx(shortest, rel=1e-5)
    assert shortest == pytest.approx(least**0.5, rel=1e-4)
    torch.manual_seed(0)
    bump = torch.sin(torch.linspace(0, torch.pi, len(points), dtype=torch.float64))[:, None]
    for _ in range(10):
        aside = points + 0.01 * bump * torch.randn(network.n, dtype=torch.float64)
        assert path_energy(network, aside, x) > least
        assert path_length(network, aside, x) > shortest


def test_energy_is_the_square_of_the_length_at_constant_speed_only() -> None:
    network = Network(nn.Sequential(nn.Linear(1, 1, bias=False)).double())
    x = torch.ones(3, 1, dtype=torch.float64)
    even = torch.tensor([[0.0], [1], [2]], dtype=torch.float64)
    assert path_length(network, even, x) == pytest.approx(2)
    assert path_energy(network, even, x) == pytest.approx(4)
    uneven = torch.tensor([[0.0], [0.5], [2]], dtype=torch.float64)
    assert path_length(network, uneven, x) == pytest.approx(2)
    assert path_energy(network, uneven, x) == pytest.approx(2 * (0.25 + 2.25))


@pytest.mark.parametrize("name", ["exact", "gram"])
def test_the_greedy_walk_is_longer_than_the_geodesic(
    smooth: Case, followed: tuple[torch.Tensor, torch.Tensor], name: str
) -> None:
    network, x = smooth
    points, _ = followed
    start, end = points[0], points[-1]

    def metric_at(w: torch.Tensor):  # type: ignore[no-untyped-def]
        if name == "exact":
            return exact_metric(network, w, [x], "logits")
        return gram_metric(network, w, x, "logits")

    walk = WeightWalkOptions(radius=0.05, least=0.1, refresh=1, until=0.01)
    walked = [point.weights for point in walk_toward_weights(start, end, metric_at, walk)]
    assert float((walked[-1] - end).norm()) <= 0.051
    greedy = path_length(network, torch.stack([start, *walked, end]), x)
    geodesic = path_length(network, points, x)
    straight = path_length(network, torch.stack([start, end]), x)
    assert geodesic < straight
    assert geodesic < greedy < 1.5 * geodesic
