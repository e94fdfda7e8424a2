from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from geomerge import Network
from geomerge.errors import NumericalError
from geomerge.metrics.exact import exact_metric
from geomerge.networks.batches import Batch, batch_size
from geomerge.steps import precondition
from geomerge.steps.compensation import compensate
from geomerge.testing import dense_jacobian, dense_metric

Case = tuple[Network, Batch]
MU = 1e-2


def split(network: Network, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A move that removes a quarter of the weights, and the mask of those that stay."""
    survivors = torch.rand(network.n, generator=torch.Generator().manual_seed(seed)) > 0.25
    return torch.where(survivors, 0.0, -network.initial), survivors


def in_full_space(g: Tensor, right: Tensor, survivors: Tensor, damping: float) -> Tensor:
    x = torch.zeros_like(right)
    inside = g[survivors][:, survivors]
    system = inside + damping * torch.eye(len(inside), dtype=g.dtype)
    x[survivors] = torch.linalg.solve(system, right[survivors])
    return x


def test_enough_steps_give_the_least_squares_repair(case: Case) -> None:
    network, x = case
    d, survivors = split(network)
    j = dense_jacobian(network, network.initial, x).flatten(0, 1) / math.sqrt(batch_size(x))
    drift = torch.randn(len(j), dtype=j.dtype)
    right = -j.T @ (j @ d + 0.5 * drift)
    metric = exact_metric(network, network.initial, [x], "logits")
    found = compensate(metric.mv, right, survivors, MU, steps=200)

    columns = j[:, survivors]
    stacked = torch.cat([columns, MU**0.5 * torch.eye(columns.shape[1], dtype=j.dtype)])
    wanted = torch.cat([-(j @ d + 0.5 * drift), torch.zeros(columns.shape[1], dtype=j.dtype)])
    expected = torch.zeros_like(d)
    expected[survivors] = torch.linalg.lstsq(stacked, wanted[:, None]).solution[:, 0]
    torch.testing.assert_close(found.x, expected, rtol=0, atol=1e-4 * float(expected.norm()))
    assert found.residual <= 1e-6
    assert (found.x[~survivors] == 0).all()


@pytest.mark.parametrize("steps", [0, 1, 3, 8])
def test_the_residual_is_what_the_equations_miss(case: Case, steps: int) -> None:
    network, x = case
    d, survivors = split(network)
    g = dense_metric(network, network.initial, x)
    right = -g @ d
    found = compensate(lambda u: g @ u, right, survivors, MU, steps=steps)
    missed = (g @ found.x + MU * found.x - right)[survivors]
    relative = float(missed.norm() / right[survivors].norm())
    assert found.steps_taken == steps
    assert found.residual == pytest.approx(relative, rel=1e-9)


@pytest.mark.parametrize("preconditioned", [False, True])
def test_every_step_lowers_the_cost(case: Case, preconditioned: bool) -> None:
    network, x = case
    d, survivors = split(network)
    metric = exact_metric(network, network.initial, [x], "logits")
    g = dense_metric(network, network.initial, x)
    diagonal = g.diagonal() + MU
    costs = []
    for steps in range(12):
        x_s = compensate(
            metric.mv, -g @ d, survivors, MU, steps=steps,
            precondition=(lambda v: v / diagonal) if preconditioned else None,
        ).x  # fmt: skip
        assert (x_s[~survivors] == 0).all()
        costs.append(float((d + x_s) @ g @ (d + x_s) + MU * x_s @ x_s))
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(costs))
    assert costs[-1] < 0.9 * costs[0]


def test_the_removed_cost_what_the_optimal_brain_surgeon_says(case: Case) -> None:
    """Hassibi & Stork 1993: d_P' [(H^-1)_PP]^-1 d_P, with H = g + mu I."""
    network, x = case
    d, survivors = split(network)
    g = dense_metric(network, network.initial, x)
    found = compensate(lambda u: g @ u, -g @ d, survivors, MU, steps=300)
    theta = d + found.x
    inverse = torch.linalg.inv(g + MU * torch.eye(network.n, dtype=g.dtype))
    removed = ~survivors
    surgeon = d[removed] @ torch.linalg.solve(inverse[removed][:, removed], d[removed])
    assert float(theta @ g @ theta + MU * theta @ theta) == pytest.approx(float(surgeon), rel=1e-9)


def test_the_exact_inverse_on_the_survivors_needs_one_step(case: Case) -> None:
    network, x = case
    d, survivors = split(network)
    g = dense_metric(network, network.initial, x)
    found = compensate(
        lambda u: g @ u, -g @ d, survivors, MU, steps=5,
        precondition=lambda v: in_full_space(g, v, survivors, MU),
    )  # fmt: skip
    assert found.steps_taken == 1
    torch.testing.assert_close(found.x, in_full_space(g, -g @ d, survivors, MU))


def test_a_metric_preconditions_without_touching_the_removed(case: Case) -> None:
    network, x = case
    d, survivors = split(network)
    metric = exact_metric(network, network.initial, [x], "logits", rank=network.n)
    g = dense_metric(network, network.initial, x)
    found = compensate(
        metric.mv, -g @ d, survivors, MU, steps=60,
        precondition=lambda v: precondition(metric, v, MU),
    )  # fmt: skip
    expected = in_full_space(g, -g @ d, survivors, MU)
    torch.testing.assert_close(found.x, expected, rtol=0, atol=1e-4 * float(expected.norm()))
    assert (found.x[~survivors] == 0).all()


def test_nothing_to_repair_or_nobody_to_do_it_takes_no_step() -> None:
    ones, g = torch.ones(4), torch.eye(4)
    idle = compensate(lambda u: g @ u, torch.zeros(4), ones > 0, MU, steps=5)
    alone = compensate(lambda u: g @ u, ones, ones < 0, MU, steps=5)
    for found in (idle, alone):
        assert (found.residual, found.steps_taken, found.x.tolist()) == (0.0, 0, [0.0] * 4)


def test_weights_in_float32_stay_so_and_are_solved(case: Case) -> None:
    network, x = case
    d, survivors = split(network)
    g = dense_metric(network, network.initial, x)
    single = g.float()
    right = -single @ d.float()
    found = compensate(lambda u: single @ u, right, survivors, MU, steps=100)
    expected = in_full_space(g, -g @ d, survivors, MU)
    assert found.x.dtype == torch.float32
    torch.testing.assert_close(
        found.x.double(), expected, rtol=0, atol=1e-3 * float(expected.norm())
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    ones = torch.ones(3)
    all_stay = ones > 0
    with pytest.raises(NumericalError, match="the right-hand side of a compensation"):
        compensate(lambda u: u, bad * ones, all_stay, MU, steps=5)
    with pytest.raises(NumericalError, match="the metric of a compensation"):
        compensate(lambda u: bad * u, ones, all_stay, MU, steps=5)
    with pytest.raises(NumericalError, match="the preconditioner of a compensation"):
        compensate(lambda u: u, ones, all_stay, MU, steps=5, precondition=lambda v: bad * v)


def test_a_matrix_that_is_not_positive_is_refused() -> None:
    ones = torch.ones(3)
    with pytest.raises(NumericalError, match="the metric of a compensation"):
        compensate(lambda u: -u, ones, ones > 0, MU, steps=5)
    with pytest.raises(NumericalError, match="the preconditioner of a compensation"):
        compensate(lambda u: u, ones, ones > 0, MU, steps=5, precondition=lambda v: -v)
