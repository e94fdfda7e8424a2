from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import clarabel
import pytest
import torch
from scipy.optimize import linprog
from scipy.sparse import csc_matrix
from torch import Tensor

from geomerge import Network
from geomerge.errors import NumericalError, OptionError
from geomerge.metrics import EigenCoordinates, Metric
from geomerge.metrics.exact import exact_metric
from geomerge.networks.batches import batch_size
from geomerge.steps import budget_step
from geomerge.steps.compensation import compensate
from geomerge.steps.group_rates import RateProgram, group_rates
from geomerge.testing import dense_jacobian
from geomerge.testing.group_rates import galerkin_program, greedy_order, schur_program

MU = 1e-2
GROUPS = 5


class DenseMetric(Metric):
    """A matrix as a metric."""

    name = "dense"

    def __init__(self, g: Tensor) -> None:
        values, self.vectors = torch.linalg.eigh(g)
        self.values = values.clamp(min=0)

    def coordinates(self, v: Tensor) -> EigenCoordinates:
        return EigenCoordinates(
            [self.vectors.T @ v], [self.values], lambda parts: self.vectors @ parts[0]
        )


class Groups(NamedTuple):
    """Five groups of weights that would like to vanish, and the rest, which compensate."""

    j: Tensor  # (M, n), over sqrt(N)
    d: Tensor  # (k, n)
    survivors: Tensor  # (n,)
    drift: Tensor  # (M,)

    @property
    def columns(self) -> Tensor:  # (M, |S|)
        return self.j[:, self.survivors]

    @property
    def schur(self) -> RateProgram:
        return schur_program(self.d @ self.j.T, self.columns @ self.columns.T, MU, self.drift)


@pytest.fixture
def groups(case: tuple[Network, Tensor]) -> Groups:
    network, x = case
    j = dense_jacobian(network, network.initial, x).flatten(0, 1) / math.sqrt(batch_size(x))
    generator = torch.Generator().manual_seed(0)
    number = torch.randint(0, 2 * GROUPS, (network.n,), generator=generator)
    d = -network.initial * (number == torch.arange(GROUPS)[:, None])
    drift = 0.3 * torch.randn(len(j), dtype=j.dtype, generator=generator)
    return Groups(j, d, number >= GROUPS, drift)


def compensations(g: Groups, pulled: Tensor) -> Tensor:
    """The exact answers of the survivors to changes of the outputs, as rows."""
    system = g.columns.T @ g.columns + MU * torch.eye(g.columns.shape[1], dtype=g.j.dtype)
    x = torch.zeros(len(pulled), g.j.shape[1], dtype=g.j.dtype)
    x[:, g.survivors] = -torch.linalg.solve(system, g.columns.T @ pulled.T).T
    return x


def random_program(seed: int, k: int = 8, rank: int = 20) -> RateProgram:
    generator = torch.Generator().manual_seed(seed)
    changes = torch.randn(k, rank, dtype=torch.float64, generator=generator)
    changes += 0.5 * torch.randn(rank, dtype=torch.float64, generator=generator)
    return galerkin_program(changes * (0.3 + torch.rand(k, 1, generator=generator).double()))


def uniform(k: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.5 + torch.rand(k, dtype=torch.float64, generator=generator)


def ask_clarabel(hessian: Tensor, linear: Tensor, rows: Tensor, limits: Tensor) -> Tensor:
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-11
    answer = clarabel.DefaultSolver(
        csc_matrix(hessian.triu().numpy()), linear.numpy(), csc_matrix(rows.numpy()),
        limits.numpy(), [clarabel.NonnegativeConeT(len(limits))], settings,
    ).solve()  # fmt: skip
    assert "Solved" in str(answer.status)
    return torch.tensor(answer.x, dtype=torch.float64)


def test_eliminating_the_compensation_is_moving_along_compensated_groups(groups: Groups) -> None:
    changes = groups.d @ groups.j.T
    x = compensations(groups, changes)
    x_0 = compensations(groups, groups.drift[None])[0]
    galerkin = galerkin_program(
        (groups.d + x) @ groups.j.T, groups.j @ x_0 + groups.drift,
        compensations=x, correction=x_0, damping=MU,
    )  # fmt: skip
    assert_same(groups.schur, galerkin)


def assert_same(one: RateProgram, other: RateProgram, tolerance: float = 1e-8) -> None:
    for a, b in ((one.hessian, other.hessian), (one.linear, other.linear)):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(b.abs().max()))


def test_compensations_by_conjugate_gradients_serve_as_well(
    case: tuple[Network, Tensor], groups: Groups
) -> None:
    network, inputs = case
    metric = exact_metric(network, network.initial, [inputs], "logits")
    x = torch.stack([
        compensate(metric.mv, -metric.mv(d), groups.survivors, MU, steps=200).x
        for d in groups.d
    ])  # fmt: skip
    galerkin = galerkin_program((groups.d + x) @ groups.j.T, compensations=x, damping=MU)
    exact = schur_program(groups.d @ groups.j.T, groups.columns @ groups.columns.T, MU)
    assert_same(exact, galerkin, 1e-6)  # errors of x count only by their square
    assert (exact.linear == 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_worse_compensations_cost_more(groups: Groups, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = compensations(groups, groups.d @ groups.j.T)
    noise = torch.randn(x.shape, dtype=x.dtype, generator=generator)
    x = x + 0.1 * torch.where(groups.survivors, noise, 0.0)
    worse = galerkin_program((groups.d + x) @ groups.j.T, compensations=x, damping=MU).hessian
    best = schur_program(groups.d @ groups.j.T, groups.columns @ groups.columns.T, MU).hessian
    values = torch.linalg.eigvalsh(worse - best)
    assert values[0] >= -1e-12 * values[-1]
    assert values[-1] > 0


def test_the_form_is_that_of_the_optimal_brain_surgeon(groups: Groups) -> None:
    """Hassibi & Stork 1993: d_P' [(H^-1)_PP]^-1 d_P with H = g + mu I, for every mix of groups."""
    removed = ~groups.survivors
    h = groups.j.T @ groups.j + MU * torch.eye(len(removed), dtype=groups.j.dtype)
    inverse = torch.linalg.inv(torch.linalg.inv(h)[removed][:, removed])
    d = groups.d[:, removed]
    surgeon = 2 * d @ inverse @ d.T - 2 * MU * d @ d.T
    scale = float(surgeon.abs().max())
    torch.testing.assert_close(groups.schur.hessian, surgeon, rtol=0, atol=1e-9 * scale)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_rates_are_those_of_the_program_in_rates_and_weights(groups: Groups, share: float) -> None:
    """All survivors as variables beside the rates, with bounds, progress and a budget."""
    j, columns, k = groups.j, groups.columns, GROUPS
    a, b = uniform(k, 1), uniform(k, 2)
    progress = share * float(a.sum())
    free = group_rates(groups.schur, a, progress).rates
    least = linprog(b.numpy(), A_ub=-a[None].numpy(), b_ub=[-progress], bounds=(0, 1)).fun
    budget = (float(b @ free) + least) / 2
    found = group_rates(groups.schur, a, progress, rows=b[None], limits=b.new_tensor([budget]))

    both = torch.cat([j @ groups.d.T, columns], dim=1)
    n = columns.shape[1]
    ridge = torch.cat([a.new_zeros(k), a.new_full((n,), MU)]).diag()
    eye, none = torch.eye(k, k + n).double(), torch.zeros(n).double()
    answer = ask_clarabel(
        2 * (both.T @ both + ridge), 2 * both.T @ groups.drift,
        torch.cat([-eye, eye, -torch.cat([a, none])[None], torch.cat([b, none])[None]]),
        torch.cat([torch.zeros(k), torch.ones(k), a.new_tensor([-progress, budget])]),
    )  # fmt: skip
    cost = float(answer @ (both.T @ both + ridge) @ answer + 2 * groups.drift @ both @ answer)
    still = float(groups.drift @ j @ compensations(groups, groups.drift[None])[0])  # at c = 0
    assert groups.schur.cost(found.rates) == pytest.approx(cost - still, rel=1e-8, abs=1e-9)
    torch.testing.assert_close(found.rates, answer[:k], rtol=0, atol=1e-7)
    assert found.certificate <= 1e-7
    assert float(found.slack.max()) <= 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_single_weights_as_groups_are_a_step_with_budgets(groups: Groups, seed: int) -> None:
    j = groups.j[:, :24]
    g = j.T @ j
    k = len(g)
    v = torch.randn(k, dtype=g.dtype, generator=torch.Generator().manual_seed(seed))
    eye = torch.eye(k, dtype=g.dtype)
    plain = galerkin_program(j.T, compensations=eye, damping=MU)
    assert_same(plain, RateProgram(2 * (g + MU * eye), torch.zeros_like(v)))
    a, b, beta = uniform(k, seed), uniform(k, seed + 9), 0.5
    program = RateProgram(plain.hessian, -beta * v)
    progress = 0.3 * float(a.sum())
    b = torch.where(torch.arange(k) < k // 2, b, -b)
    limit = 0.5 * float(b @ group_rates(program, a, progress).rates)
    limit = limit if limit > 0 else 2 * limit
    found = group_rates(program, a, progress, rows=b[None], limits=a.new_tensor([limit]), price=1e6)
    metric = DenseMetric(g)
    rows = torch.cat([-eye, eye, -a[None], b[None]])
    limits = torch.cat([torch.zeros(k), torch.ones(k), a.new_tensor([-progress, limit])])
    step = budget_step(metric, v, rows, limits, MU, beta)
    torch.testing.assert_close(found.rates, step.tangent, rtol=0, atol=1e-8)


def test_the_scale_of_cost_and_progress_does_not_matter() -> None:
    program, a = random_program(0), uniform(8, 1)
    rates = group_rates(program, a, 3.0).rates
    for cost, unit in ((1e-8, 1e6), (1e8, 1e-6)):
        scaled = RateProgram(cost * program.hessian, cost * program.linear)
        found = group_rates(scaled, unit * a, unit * 3.0)
        torch.testing.assert_close(found.rates, rates, rtol=0, atol=1e-7)
        assert found.progress_price == pytest.approx(
            group_rates(program, a, 3.0).progress_price * cost / unit, rel=1e-6
        )


def test_the_progress_price_is_what_more_progress_costs() -> None:
    program, a, h = random_program(1), uniform(8, 2), 1e-5
    cost = [program.cost(group_rates(program, a, 4.0 + s).rates) for s in (-h, h)]
    price = group_rates(program, a, 4.0).progress_price
    assert price == pytest.approx((cost[1] - cost[0]) / (2 * h), rel=1e-5)


def test_prices_are_what_budgets_cost() -> None:
    program, a, rows = random_program(2), uniform(8, 3), uniform(16, 4).view(2, 8)
    rows[1] = 1 - rows[0]
    used = rows @ group_rates(program, a, 4.0).rates
    limits, h = torch.stack([used[0] - 0.1, used[1] + 1.0]), 1e-5

    def cost(limit: float) -> float:
        d = torch.stack([limits[0] + limit, limits[1]])
        return program.cost(group_rates(program, a, 4.0, rows=rows, limits=d).rates)

    found = group_rates(program, a, 4.0, rows=rows, limits=limits)
    assert float(found.prices[0]) == pytest.approx(-(cost(h) - cost(-h)) / (2 * h), rel=1e-4)
    assert float(found.prices[1]) == 0
    assert float(found.slack.max()) <= 1e-12


def test_budgets_that_cannot_be_kept_are_broken_and_progress_is_made() -> None:
    program, a = random_program(3), uniform(8, 5)
    rows, limits = torch.stack([a, a]), torch.tensor([3.0, torch.inf])
    found = group_rates(program, a, 4.0, rows=rows, limits=limits)
    assert float(a @ found.rates) == pytest.approx(4.0, abs=1e-9)
    assert found.slack.tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    assert found.prices.tolist() == pytest.approx([1e3, 0.0])


def test_rates_follow_their_program_by_gradients() -> None:
    program, a = random_program(4, k=4), uniform(4, 6)
    budget = a.flip(0)[None]
    limits = budget @ group_rates(program, a, 2.0).rates - 0.05

    def rates(hessian: Tensor, linear: Tensor, limits: Tensor) -> Tensor:
        return group_rates(RateProgram(hessian, linear), a, 2.0, rows=budget, limits=limits).rates

    p = (program.hessian, program.linear, limits)
    at = [t.clone().requires_grad_() for t in p]
    assert torch.autograd.gradcheck(rates, at, eps=1e-6, atol=1e-5, rtol=1e-4)


def test_all_progress_there_is_moves_every_group_whole() -> None:
    program, a = random_program(5), uniform(8, 7)
    found = group_rates(program, a, float(a.sum()))
    torch.testing.assert_close(found.rates, torch.ones(8).double(), rtol=0, atol=1e-6)


def test_no_progress_and_no_drift_moves_nothing() -> None:
    found = group_rates(random_program(6), uniform(8, 8), 0.0)
    torch.testing.assert_close(found.rates, torch.zeros(8).double(), rtol=0, atol=1e-9)


def test_groups_without_a_cost_go_first() -> None:
    """A dead neuron changes nothing; it must not blur the others by setting their units."""
    program = random_program(7)
    hessian = program.hessian.clone()
    hessian[:2], hessian[:, :2] = 0, 0
    hessian[1, 1] = 1e-9
    rates = group_rates(RateProgram(hessian, program.linear), torch.ones(8), 4.0).rates
    alive = group_rates(
        RateProgram(hessian[2:, 2:], program.linear[2:]), torch.ones(6), 2.0
    ).rates  # fmt: skip
    torch.testing.assert_close(rates[:2], torch.ones(2).double(), rtol=0, atol=1e-7)
    torch.testing.assert_close(rates[2:], alive, rtol=0, atol=1e-6)


def test_impossible_wishes_are_refused() -> None:
    program, ones = random_program(8), torch.ones(8)
    for choose in (group_rates, greedy_order):
        with pytest.raises(OptionError, match=r"progress of at most 8, .* got 8\.5"):
            choose(program, ones, 8.5)
        with pytest.raises(OptionError, match="a group adds -1 to the progress"):
            choose(program, -ones, 1.0)
        with pytest.raises(OptionError, match="got nan"):
            choose(program, ones, math.nan)


def test_a_gram_matrix_beyond_its_damping_is_refused() -> None:
    changes, gram = torch.ones(2, 3), torch.ones(3, 3) - 2 * torch.eye(3)
    for bad in (gram, math.nan * gram):
        with pytest.raises(NumericalError, match="raise the damping"):
            schur_program(changes, bad, 0.1)


def test_without_interactions_and_equal_weights_greedy_is_optimal() -> None:
    generator = torch.Generator().manual_seed(0)
    q, p = torch.rand(2, 9, dtype=torch.float64, generator=generator)
    program = RateProgram(q.diag(), p - 0.5)
    found = greedy_order(program, torch.ones(9), 4.0)
    assert found.tolist() == (q / 2 + p).argsort()[:4].tolist()
    assert program.cost(moved(found, 9)) == pytest.approx(brute_force(program, 4))


def moved(order: Tensor, k: int) -> Tensor:
    return torch.zeros(k, dtype=torch.float64).index_fill(0, order, 1.0)


def brute_force(program: RateProgram, count: int) -> float:
    k = len(program.linear)
    subsets = itertools.combinations(range(k), count)
    return min(program.cost(moved(torch.tensor(s), k)) for s in subsets)


@pytest.mark.parametrize("count", [2, 5, 7])
def test_interactions_make_greedy_cheaper_than_saliency(count: int) -> None:
    greedy, saliency, best, relaxed = [], [], [], []
    for seed in range(20):
        program = random_program(seed, k=9, rank=6)
        greedy.append(program.cost(moved(greedy_order(program, torch.ones(9), count), 9)))
        alone = program.hessian.diagonal().argsort()[:count]
        saliency.append(program.cost(moved(alone, 9)))
        best.append(brute_force(program, count))
        relaxed.append(program.cost(group_rates(program, torch.ones(9), count).rates))
    assert sum(greedy) < sum(saliency)
    assert sum(g <= s + 1e-12 for g, s in zip(greedy, saliency, strict=True)) >= 15
    assert all(g >= b - 1e-9 for g, b in zip(greedy, best, strict=True))
    assert all(b >= r - 1e-6 for b, r in zip(best, relaxed, strict=True))


def test_every_choice_is_the_cheapest_beside_those_before_it() -> None:
    program, a = random_program(9), uniform(8, 9)
    order = greedy_order(program, a, 0.8 * float(a.sum())).tolist()
    for at, chosen in enumerate(order[:-1]):
        before = moved(torch.tensor(order[:at], dtype=torch.long), 8)
        prices = [
            (program.cost(before + moved(torch.tensor(j), 8)) - program.cost(before)) / float(a[j])
            for j in set(range(8)) - set(order[:at])
        ]
        own = program.cost(before + moved(torch.tensor(chosen), 8)) - program.cost(before)
        assert own / float(a[chosen]) == pytest.approx(min(prices))


def test_groups_already_moved_count_and_are_not_chosen_again() -> None:
    program, a = random_program(10), uniform(8, 10)
    order = greedy_order(program, a, 5.0)
    already = moved(order[:2], 8) > 0
    torch.testing.assert_close(greedy_order(program, a, 5.0, already), order[2:])
    assert greedy_order(program, a, 0.0).numel() == 0


def test_the_last_group_is_not_larger_than_it_is_worth() -> None:
    """The large group is cheaper by the unit, but only a little is missing."""
    program = RateProgram(torch.tensor([0.2, 2.0, 20.0]).double().diag(), torch.zeros(3).double())
    assert greedy_order(program, torch.tensor([1.0, 2.0, 100.0]), 2.0).tolist() == [0, 1]


def test_groups_that_count_nothing_stay() -> None:
    program = RateProgram(torch.eye(3).double(), torch.tensor([-9.0, 0, 0]).double())
    assert greedy_order(program, torch.tensor([0.0, 1, 1]), 2.0).tolist() == [1, 2]
