from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from geomerge import Network
from geomerge.data import Inputs, Normalisation, as_they_are
from geomerge.errors import NumericalError
from geomerge.metrics import functional_change
from geomerge.networks.batches import Batch, batch_size, cast_floats, drawn_like, take
from geomerge.paths.energy import Manifold, fine, measure_path
from geomerge.paths.relax import Relaxation, _add_gradient, _descend, relax_path
from geomerge.testing import dense_metric

SHORT = Relaxation(steps=60, batch=64)


def inputs(count: int, shape: tuple[int, ...], seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    return Inputs(torch.randn(count, *shape, generator=generator), Normalisation((0.0,), (1.0,)))


def more_like(x: Batch, count: int, seed: int) -> Batch:
    """Other examples: floats are drawn, and integers are those of a batch in another order."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(0, batch_size(x), (count,), generator=generator)
    return drawn_like(cast_floats(take(x, index), torch.zeros(1)), generator)


def bent_path(network: Network, pieces: int) -> list[torch.Tensor]:
    """A path with a bulge, its ends two different networks."""
    torch.manual_seed(1)
    end, bulge = (torch.randn_like(network.initial) for _ in range(2))
    ts = [k / pieces for k in range(pieces + 1)]
    return [network.initial + 0.5 * (t * end + 2 * t * (1 - t) * bulge) for t in ts]


@pytest.fixture
def setting(
    case: tuple[Network, Batch],
) -> tuple[list[torch.Tensor], list[Manifold], list[Manifold]]:
    network, x = case
    with torch.no_grad():  # variances must stay positive on the way
        points = bent_path(network, 6)
    for p in points:
        p[network.n_parameters :] = network.initial[network.n_parameters :]
    many, held = (as_they_are(more_like(x, count, seed)) for seed, count in enumerate((64, 50)))
    return points, [(network, many)], [(network, held)]


def linear() -> tuple[Network, list[torch.Tensor], list[Manifold]]:
    torch.manual_seed(0)
    network = Network(nn.Linear(5, 3).double())
    return network, bent_path(network, 6), [(network, inputs(64, (5,), 0))]


@pytest.mark.parametrize("output", ["hellinger", "logits"])
def test_less_energy_between_the_same_ends(
    setting: tuple[list[torch.Tensor], list[Manifold], list[Manifold]], output: str
) -> None:
    points, manifolds, held = setting
    copies = [p.clone() for p in points]
    relaxed = relax_path(points, manifolds, held, output, SHORT)
    assert relaxed.share == 1
    assert relaxed.after.energy < 0.9 * relaxed.before.energy
    assert relaxed.after == measure_path(relaxed.points, held, output)
    assert torch.equal(relaxed.points[0], points[0])
    assert torch.equal(relaxed.points[-1], points[-1])
    assert len(relaxed.points) == len(points)
    assert all(torch.equal(p, q) for p, q in zip(points, copies, strict=True))


@pytest.mark.parametrize("refine", [1, 3])
def test_bound_length_and_energy_are_in_order(
    setting: tuple[list[torch.Tensor], list[Manifold], list[Manifold]], refine: int
) -> None:
    points, manifolds, held = setting
    measure = measure_path(points, [*manifolds, *held], "hellinger", refine)
    assert measure.bound <= measure.length**2 * (1 + 1e-12)
    assert measure.length**2 <= measure.energy * (1 + 1e-12)
    assert measure.gap == pytest.approx(measure.energy / measure.bound)
    assert len(measure.lengths) == len(points) - 1
    each = [measure_path(points, [m], "hellinger", refine) for m in (*manifolds, *held)]
    assert measure.energy == pytest.approx(sum(e.energy for e in each))
    assert measure.bound == pytest.approx(sum(e.bound for e in each))


@pytest.mark.parametrize("output", ["hellinger", "logits"])
def test_the_energy_is_the_integral_of_the_metric(
    setting: tuple[list[torch.Tensor], list[Manifold], list[Manifold]], output: str
) -> None:
    points, _, held = setting
    ((network, some),) = held
    x = cast_floats(some.batch(slice(0, None)), points[0])
    pieces, refine = 2, 40
    points = points[: pieces + 1]
    energy, grid = 0.0, list(fine(points, refine))
    for before, after in pairwise(grid):
        theta = after - before
        g = dense_metric(network, (before + after) / 2, x, output)  # the midpoint rule
        energy += float(theta @ g @ theta) * pieces * refine
    rel = 2e-2 if "relu" in str(network.module).lower() else 1e-4  # kinks between the points
    assert measure_path(points, held, output, refine).energy == pytest.approx(energy, rel=rel)


def test_a_finer_grid_never_finds_less_energy_or_length(
    setting: tuple[list[torch.Tensor], list[Manifold], list[Manifold]],
) -> None:
    points, _, held = setting
    measures = [measure_path(points, held, refine=r) for r in (1, 2, 4, 8)]
    for rough, finer in pairwise(measures):
        assert finer.energy >= rough.energy * (1 - 1e-12)
        assert finer.length >= rough.length * (1 - 1e-12)


def test_the_gradient_is_that_of_the_energy(case: tuple[Network, torch.Tensor]) -> None:
    network, x = case
    nodes = torch.stack(bent_path(network, 3))
    nodes[:, network.n_parameters :] = network.initial[network.n_parameters :]
    times = [0.2, 0.4, 0.9]
    gradient = torch.zeros_like(nodes[:, : network.n_parameters])
    energy = _add_gradient(gradient, network, nodes, times, x, "logits")

    def at(t: float, of: torch.Tensor) -> torch.Tensor:
        i = min(int(3 * t), 2)
        return network.logits(torch.lerp(of[i], of[i + 1], 3 * t - i), x)

    def value(of: torch.Tensor) -> float:
        ts = [0.0, *times, 1.0]
        return sum(functional_change(at(s, of), at(t, of), "logits") / (t - s)
                   for s, t in pairwise(ts))  # fmt: skip

    assert energy == pytest.approx(value(nodes))
    tangent = torch.zeros_like(nodes)
    tangent[1:-1, : network.n_parameters] = torch.randn(2, network.n_parameters).double()
    slope = (value(nodes + 1e-6 * tangent) - value(nodes - 1e-6 * tangent)) / 2e-6
    found = float((gradient * tangent[:, : network.n_parameters]).sum())
    assert found == pytest.approx(slope, rel=1e-5)


def test_a_linear_model_reaches_the_bound() -> None:
    _, points, manifolds = linear()
    moved = _descend(points, manifolds, "logits", replace(SHORT, steps=300), None)
    gaps = [measure_path(path, manifolds, "logits").gap or 0.0 for path in (points, moved)]
    assert gaps[0] > 1.2
    assert gaps[1] == pytest.approx(1, abs=1e-3)
    relaxed = relax_path(points, manifolds, manifolds, "logits", SHORT)
    assert relaxed.after.gap == pytest.approx(1, abs=1e-5)


def test_a_curved_metric_is_followed_below_the_line() -> None:
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double())
    end = network.initial + torch.randn(network.n)
    points = [torch.lerp(network.initial, end, k / 8) for k in range(9)]
    manifolds, held = ([(network, inputs(300, (4,), seed))] for seed in (0, 1))
    relaxed = relax_path(points, manifolds, held, "logits", replace(SHORT, steps=200))
    assert relaxed.after.energy < 0.9 * relaxed.before.energy
    assert relaxed.after.length < relaxed.before.length


def test_the_same_seed_gives_the_same_path(
    setting: tuple[list[torch.Tensor], list[Manifold], list[Manifold]],
) -> None:
    points, manifolds, held = setting
    few = replace(SHORT, steps=5, batch=16)
    one, two, other = (
        relax_path(points, manifolds, held, settings=s) for s in (few, few, replace(few, seed=1))
    )
    assert all(torch.equal(p, q) for p, q in zip(one.points, two.points, strict=True))
    assert not torch.equal(one.points[2], other.points[2])


def test_the_guard_backs_off_as_far_as_it_must() -> None:
    _, points, manifolds = linear()
    free = relax_path(points, manifolds, manifolds, "logits", SHORT)
    way = float((free.points[3] - points[3]).norm())

    def worst(path: list[torch.Tensor]) -> float:
        return 0.9 if float((path[3] - points[3]).norm()) < 0.3 * way else 0.8

    relaxed = relax_path(points, manifolds, manifolds, "logits", SHORT, worst=worst)
    assert relaxed.share == 0.25
    assert relaxed.worst_before == relaxed.worst_after == 0.9
    assert free.after.energy < relaxed.after.energy < relaxed.before.energy


def test_the_path_comes_back_where_every_other_is_worse() -> None:
    _, points, manifolds = linear()

    def worst(path: list[torch.Tensor]) -> float:
        return 0.9 if torch.equal(path[3], points[3]) else 0.8

    relaxed = relax_path(points, manifolds, manifolds, "logits", SHORT, worst=worst)
    assert relaxed.share == 0
    assert relaxed.after == relaxed.before
    assert all(torch.equal(p, q) for p, q in zip(relaxed.points, points, strict=True))


def test_steps_that_lead_nowhere_never_raise_the_energy(
    setting: tuple[list[torch.Tensor], list[Manifold], list[Manifold]],
) -> None:
    points, manifolds, held = setting
    wild = replace(SHORT, steps=3, learning_rate=20.0)
    relaxed = relax_path(points, manifolds, held, settings=wild)
    assert relaxed.after.energy <= relaxed.before.energy
    assert relaxed.after == measure_path(relaxed.points, held)


def test_paths_with_nothing_to_move() -> None:
    network, points, manifolds = linear()
    ends = [points[0], points[-1]]
    assert all(
        torch.equal(p, q)
        for p, q in zip(relax_path(ends, manifolds, manifolds).points, ends, strict=True)
    )
    same = relax_path([network.initial] * 4, manifolds, manifolds, settings=SHORT)
    assert same.after.energy == 0
    assert same.after.gap is None
    assert all(torch.equal(p, network.initial) for p in same.points)


def test_buffers_stay_on_the_path(case: tuple[Network, Batch]) -> None:
    network, x = case
    points = bent_path(network, 4)
    for k, p in enumerate(points):
        p[network.n_parameters :] = network.initial[network.n_parameters :] * (1 + k / 4)
    manifolds = [(network, as_they_are(more_like(x, 40, 0)))]
    relaxed = relax_path(points, manifolds, manifolds, settings=replace(SHORT, steps=5))
    for p, q in zip(points, relaxed.points, strict=True):
        torch.testing.assert_close(p[network.n_parameters :], q[network.n_parameters :])


def test_an_energy_that_is_not_finite_is_refused() -> None:
    _, points, manifolds = linear()
    points[2] = points[2] * float("inf")
    with pytest.raises(NumericalError, match="give a smaller learning rate"):
        relax_path(points, manifolds, manifolds, "logits", SHORT)
