from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec

import clarabel
import pytest
import torch
from scipy.sparse import csc_matrix
from torch import Tensor

from geomerge.errors import QPError
from geomerge.steps.qp import backends
from geomerge.steps.qp.kkt import Program
from geomerge.steps.qp.solve import QPSolution, solve_qp

INF = float("inf")
# From Python 3.13 on qpth, which asks for NumPy below 2, is not installed, and clarabel solves.
with_qpth = pytest.mark.skipif(find_spec("qpth") is None, reason="qpth is not installed here")
Problem = tuple[Tensor, Tensor, Tensor, Tensor]


def ask_clarabel(hessian: Tensor, linear: Tensor, rows: Tensor, limits: Tensor) -> Tensor | None:
    """One program, as it is; clarabel too cycles now and then, and says so."""
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-10
    answer = clarabel.DefaultSolver(
        csc_matrix(hessian.triu().numpy()), linear.numpy(), csc_matrix(rows.numpy()),
        limits.numpy(), [clarabel.NonnegativeConeT(len(limits))], settings,
    ).solve()  # fmt: skip
    solved = "Solved" in str(answer.status)
    return torch.tensor(answer.x, dtype=torch.float64) if solved else None


def reference(hessian: Tensor, linear: Tensor, rows: Tensor, limits: Tensor) -> Tensor:
    z = ask_clarabel(hessian, linear, rows, limits)
    assert z is not None
    return z


def random_problem(generator: torch.Generator, batch: int, n: int, m: int) -> Problem:
    """Programs with a strictly feasible point."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    a = normal(batch, n, n)
    rows = normal(batch, m, n)
    inside = (rows @ normal(batch, n, 1))[..., 0] + normal(batch, m).abs()
    return a @ a.mT + 0.1 * torch.eye(n), 3 * normal(batch, n), rows, inside


def problem(seed: int = 0, n: int = 6, m: int = 8) -> Problem:
    hessian, linear, rows, limits = random_problem(torch.Generator().manual_seed(seed), 1, n, m)
    return hessian[0], linear[0], rows[0], limits[0]


def assert_optimal(solution: QPSolution, p: Problem, tolerance: float = 1e-6) -> None:
    """The conditions in the caller's units, relative to the sizes that occur in them."""
    hessian, linear, rows, limits = p
    z, y = solution.z[0], solution.multipliers[0]
    bounded = limits.isfinite()
    excess = rows[bounded] @ z - limits[bounded]
    assert (y[~bounded] == 0).all()
    y, rows = y[bounded], rows[bounded]
    slope = hessian @ z + linear + rows.mT @ y
    assert slope.abs().max() <= tolerance * (1e-300 + linear.abs().max())
    assert excess.max() <= tolerance * (1e-300 + (rows.abs() @ z.abs()).max())
    assert y.min() >= 0
    assert (y * excess).abs().max() <= tolerance * (1e-300 + linear.abs() @ z.abs())


def assert_right(p: Problem, like: Problem | None = None) -> None:
    solution = solve_qp(*p)
    assert_optimal(solution, p)
    torch.testing.assert_close(solution.z[0], reference(*(like or p)), rtol=1e-6, atol=1e-6)


def with_row(p: Problem, row: Tensor, limit: float) -> Problem:
    hessian, linear, rows, limits = p
    return (
        hessian, linear, torch.cat([rows, row[None]]),
        torch.cat([limits, torch.tensor([limit], dtype=torch.float64)]),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("factor", [1e-9, 1e-3, 1e2, 1e3, 1e6, 1e12])
def test_the_scale_of_the_objective_does_not_matter(factor: float, seed: int) -> None:
    hessian, linear, rows, limits = problem(seed)
    assert_right((factor * hessian, factor * linear, rows, limits), (hessian, linear, rows, limits))


@pytest.mark.parametrize("factor", [1e-9, 1e-3, 1e3, 1e6])
def test_the_scale_of_the_variables_does_not_matter(factor: float) -> None:
    hessian, linear, rows, limits = problem()
    scaled = (hessian / factor**2, linear / factor, rows / factor, limits)
    z = solve_qp(*scaled).z[0] / factor
    torch.testing.assert_close(z, reference(hessian, linear, rows, limits), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gap", [1e-6, 1e-2, 1.0, 1e3])
def test_contradicting_rows_are_an_error(gap: float) -> None:
    hessian, linear, _, _ = problem(n=2)
    rows = torch.tensor([[1, 0], [-1, 0]], dtype=torch.float64)
    limits = torch.tensor([-gap, 0], dtype=torch.float64)
    with pytest.raises(QPError, match=r"rows contradict each other.*soft"):
        solve_qp(hessian, linear, rows, limits)


def test_an_element_without_a_solution_is_named_and_its_neighbours_are_not_spoilt() -> None:
    p = random_problem(torch.Generator().manual_seed(0), 2, 6, 8)
    rows, limits = p[2].clone(), p[3].clone()
    rows[1, 1], limits[1, 0], limits[1, 1] = -rows[1, 0], -1.0, 0.0
    with pytest.raises(QPError, match="program 1 of 2"):
        solve_qp(p[0], p[1], rows, limits)
    soft = torch.zeros(8, dtype=torch.bool)
    soft[:2] = True
    solution = solve_qp(p[0], p[1], rows, limits, soft=soft, price=1e4)
    other = reference(p[0][0], p[1][0], rows[0], limits[0])
    torch.testing.assert_close(solution.z[0], other, rtol=1e-6, atol=1e-6)
    assert float(solution.slack[0].max()) <= 1e-9
    assert float(solution.slack[1].sum()) == pytest.approx(1.0, rel=1e-6)


def test_a_singular_form_is_solved() -> None:
    hessian, linear, rows, limits = problem()
    values, vectors = torch.linalg.eigh(hessian)
    values[:3] = 0
    box = torch.cat([torch.eye(6), -torch.eye(6)]).double()
    singular = vectors @ values.diag() @ vectors.mT
    p = (singular, linear, torch.cat([rows, box]), torch.cat([limits, torch.ones(12).double()]))
    assert_right(p)


def test_linear_programs_are_solved() -> None:
    _, linear, _, _ = problem()
    box = torch.cat([torch.eye(6), -torch.eye(6)]).double()
    for factor in (0.0, 1e-8):
        p = (factor * torch.eye(6).double(), linear, box, torch.ones(12).double())
        z = solve_qp(*p).z[0]
        torch.testing.assert_close(z, -linear.sign(), rtol=1e-6, atol=1e-6)


def test_an_objective_without_a_minimum_is_an_error() -> None:
    hessian, linear, rows, limits = problem(m=2)
    with pytest.raises(QPError, match="falls without end"):
        solve_qp(0 * hessian, linear, rows, limits)


@pytest.mark.parametrize("limit", [1e3, 1e6, 1e10, 1e30, INF])
def test_rows_far_away_change_nothing(limit: float) -> None:
    p = problem()
    assert_right(with_row(p, torch.ones(6).double(), limit), p)
    assert_right(with_row(p, p[2][0], limit), p)


@pytest.mark.parametrize("limit", [0.0, 1.0, INF])
def test_rows_of_zeros_change_nothing(limit: float) -> None:
    p = problem()
    assert_right(with_row(p, torch.zeros(6).double(), limit), p)


def test_a_row_of_zeros_with_a_negative_limit_is_an_error_unless_soft() -> None:
    p = with_row(problem(), torch.zeros(6).double(), -0.5)
    with pytest.raises(QPError, match=r"row 8 of program 0 is zero but its limit is -0\.5"):
        solve_qp(*p)
    soft = torch.arange(9) == 8
    solution = solve_qp(*p, soft=soft)
    torch.testing.assert_close(solution.z[0], reference(*problem()), rtol=1e-6, atol=1e-6)
    assert float(solution.slack[0, 8]) == pytest.approx(0.5)


def test_repeated_rows_and_equalities_as_two_rows_are_solved() -> None:
    p = problem()
    first, limit = p[2][0], float(p[3][0])
    assert_right(with_row(p, first, limit), p)
    equality = with_row(p, -first, -limit)
    assert_right(equality)
    assert_right(with_row(with_row(equality, first, limit), -first, -limit), equality)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_the_scale_of_a_row_does_not_matter(factor: float) -> None:
    hessian, linear, rows, limits = problem()
    scale = torch.ones(8).double()
    scale[::2] = factor
    assert_right((hessian, linear, scale[:, None] * rows, scale * limits), problem())


def test_a_weakly_active_row_is_solved() -> None:
    hessian, linear, rows, limits = problem()
    z = reference(hessian, linear, rows, limits)
    touching = torch.randn(6, generator=torch.Generator().manual_seed(1)).double()
    assert_right(with_row(problem(), touching, float(touching @ z)), problem())


def test_a_badly_conditioned_form_is_solved() -> None:
    _, linear, rows, limits = problem()
    basis = torch.linalg.qr(rows[:6])[0]
    hessian = basis @ torch.logspace(0, 10, 6).double().diag() @ basis.mT
    assert_optimal(solve_qp(hessian, linear, rows, limits), (hessian, linear, rows, limits), 1e-6)


@pytest.mark.parametrize("name", ["hessian", "linear", "rows", "limits"])
def test_what_is_not_finite_is_refused(name: str) -> None:
    p = dict(zip(("hessian", "linear", "rows", "limits"), problem(), strict=True))
    p[name] = p[name].clone()
    p[name].view(-1)[1] = float("nan")
    with pytest.raises(QPError, match=f"the {name} of a quadratic program hold NaN"):
        solve_qp(**p)


def test_an_indefinite_form_is_refused() -> None:
    hessian, linear, rows, limits = problem()
    with pytest.raises(QPError, match="expected none under zero"):
        solve_qp(hessian - 0.5 * hessian.trace() * torch.eye(6), linear, rows, limits)


def test_no_rows_give_the_free_minimum() -> None:
    hessian, linear, rows, limits = problem()
    solution = solve_qp(hessian, linear, rows[:0], limits[:0])
    torch.testing.assert_close(hessian @ solution.z[0], -linear)
    assert solution.multipliers.shape == (1, 0)


def test_float32_is_solved_in_float64() -> None:
    p = tuple(t.float() for t in problem())
    assert_right(tuple(t.double() for t in p))
    assert solve_qp(*p).z.dtype == torch.float64


def sweep(n_problems: int, batch: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(4, 6), (6, 8), (2, 8), (8, 16), (10, 4)]
    unknown = 0
    for k in range(n_problems // batch):
        n, m = shapes[k % len(shapes)]
        p = random_problem(generator, batch, n, m)
        solution = solve_qp(*p)
        assert float(solution.certificate.max()) <= 1e-9
        for i in range(batch):
            expected = ask_clarabel(*(t[i] for t in p))
            if expected is None:
                unknown += 1
            else:
                torch.testing.assert_close(solution.z[i], expected, rtol=1e-5, atol=1e-5)
    assert unknown <= n_problems / 1000


def test_random_programs_agree_with_clarabel() -> None:
    sweep(200, batch=1, seed=0)
    sweep(400, batch=40, seed=1)


@pytest.mark.slow
def test_many_random_programs_agree_with_clarabel() -> None:
    sweep(1_000, batch=1, seed=2)
    sweep(9_000, batch=100, seed=3)


def outputs(**options: object) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def function(*p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        solution = solve_qp(*p, **options)
        return solution.z, solution.multipliers, solution.slack

    return function


@pytest.mark.parametrize("unbatched", [(), (0,), (1,), (2,), (3,), (0, 1, 2)])
def test_gradients_sum_over_the_batch(unbatched: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(5)
    p = list(random_problem(generator, 2, 3, 4))
    for k in unbatched:
        p[k] = p[k][0]
    p = [t.clone().requires_grad_() for t in p]
    assert (solve_qp(*p).multipliers > 1e-3).any()
    assert torch.autograd.gradcheck(outputs(), p, eps=1e-6, atol=1e-6, rtol=1e-5)


def test_gradients_of_broken_rows() -> None:
    hessian, linear, rows, limits = random_problem(torch.Generator().manual_seed(0), 2, 4, 5)
    rows[:, 1], limits[:, 0], limits[:, 1] = -rows[:, 0], -1.0, 0.5
    p = [t.requires_grad_() for t in (hessian, linear, rows, limits)]
    function = outputs(soft=torch.arange(5) < 2, price=50.0)
    assert (function(*p)[2] > 0.01).any()
    assert torch.autograd.gradcheck(function, p, eps=1e-6, atol=1e-6, rtol=1e-5)


def test_gradients_pass_rows_without_a_limit_and_badly_scaled_programs() -> None:
    hessian, linear, rows, limits = with_row(problem(3), torch.ones(6).double(), INF)
    p = [t.requires_grad_() for t in (1e6 * hessian, 1e6 * linear, rows, limits)]
    solve_qp(*p).z.sum().backward()
    like = [t.requires_grad_() for t in problem(3)]
    solve_qp(*like).z.sum().backward()
    torch.testing.assert_close(1e6 * p[0].grad, like[0].grad)
    torch.testing.assert_close(p[2].grad[:8], like[2].grad)
    assert p[3].grad[8] == 0
    assert (p[2].grad[8] == 0).all()


@pytest.mark.parametrize("price", [0.5, 5.0, 500.0])
def test_soft_rows_cost_their_price(price: float) -> None:
    """The elastic program as clarabel sees it, with its slacks as variables."""
    hessian, linear, rows, limits = problem(1)
    limits = limits - 3
    n, m = 6, 8
    big = torch.zeros(n + m, n + m).double()
    big[:n, :n] = hessian
    eye, zero = torch.eye(m).double(), torch.zeros(m, n).double()
    expected = reference(
        big,
        torch.cat([linear, torch.full((m,), price).double()]),
        torch.cat([torch.cat([rows, -eye], 1), torch.cat([zero, -eye], 1)]),
        torch.cat([limits, torch.zeros(m).double()]),
    )
    solution = solve_qp(hessian, linear, rows, limits, soft=torch.ones(m) > 0, price=price)
    torch.testing.assert_close(solution.z[0], expected[:n], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(solution.slack[0], expected[n:], rtol=1e-6, atol=1e-6)
    assert (solution.multipliers <= price * (1 + 1e-9)).all()


def test_multipliers_are_shadow_prices() -> None:
    hessian, linear, rows, limits = problem(2)

    def value(h: Tensor) -> float:
        z = solve_qp(hessian, linear, rows, h).z[0]
        return float(z @ hessian @ z / 2 + linear @ z)

    prices = solve_qp(hessian, linear, rows, limits).multipliers[0]
    assert (prices > 1e-3).any()
    for i in range(8):
        step = 1e-5 * (torch.arange(8) == i)
        change = (value(limits + step) - value(limits - step)) / 2e-5
        assert change == pytest.approx(-float(prices[i]), rel=1e-5, abs=1e-7)


def test_the_certificate_is_small_and_the_solver_named() -> None:
    solution = solve_qp(*random_problem(torch.Generator().manual_seed(0), 10, 6, 8))
    assert float(solution.certificate.max()) <= 1e-12
    assert set(solution.solvers) <= {"qpth", "qpth alone", "clarabel"}
    assert len(solution.solvers) == 10


def test_nothing_qpth_says_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    p = random_problem(torch.Generator().manual_seed(0), 2, 6, 8)
    expected = solve_qp(*p).z
    monkeypatch.setattr(Program, "polish", lambda self, z, multipliers: (z, multipliers))
    for z in (torch.full((2, 6), 3.0), torch.full((2, 6), torch.nan)):
        lie = (z.double(), torch.zeros(2, 8).double())
        monkeypatch.setattr(backends, "_qpth", lambda one, _, lie=lie: tuple(
            t[: len(one.linear)].clone() for t in lie
        ))  # fmt: skip
        solution = solve_qp(*p)
        assert solution.solvers == ("clarabel", "clarabel")
        torch.testing.assert_close(solution.z, expected, rtol=1e-6, atol=1e-6)
        with monkeypatch.context() as both:
            both.setattr(backends, "_clarabel", lambda one, lie=lie: (lie[0][:1], lie[1][:1], "Ok"))
            with pytest.raises(QPError, match="program 0 of 2 is solved only to"):
                solve_qp(*p)


@with_qpth
def test_an_element_that_a_batch_spoils_is_solved_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    p = random_problem(torch.Generator().manual_seed(0), 2, 6, 8)
    expected = solve_qp(*p).z
    honest = backends._qpth

    def spoilt(program: Program, n_slacks: int) -> tuple[Tensor, Tensor]:
        z, multipliers = honest(program, n_slacks)
        if len(z) > 1:
            z[1] = torch.nan
        return z, multipliers

    monkeypatch.setattr(backends, "_qpth", spoilt)
    monkeypatch.setattr(Program, "polish", lambda self, z, multipliers: (z, multipliers))
    solution = solve_qp(*p)
    assert solution.solvers == ("qpth", "qpth alone")
    torch.testing.assert_close(solution.z, expected, rtol=1e-6, atol=1e-6)


@with_qpth
@pytest.mark.parametrize("soft", [False, True])
def test_without_qpth_solutions_and_gradients_are_the_same(
    monkeypatch: pytest.MonkeyPatch, soft: bool
) -> None:
    generator = torch.Generator().manual_seed(3)
    p = random_problem(generator, 12, 6, 8)
    mask = torch.arange(8) % 2 == 0 if soft else None
    results = {}
    for name in ("qpth", "clarabel"):
        monkeypatch.setattr(backends, "qp_solver", lambda name=name: name)
        given = [t.clone().requires_grad_() for t in p]
        solution = solve_qp(*given, soft=mask)
        assert set(solution.solvers) == {name}
        weight = torch.arange(6.0).double()
        (solution.z @ weight + solution.multipliers.square().sum(1)).sum().backward()
        results[name] = [solution.z.detach(), *(t.grad for t in given)]
    for k, (one, two) in enumerate(zip(*results.values(), strict=True)):
        close = 1e-6 if k == 0 else 1e-5
        torch.testing.assert_close(one, two, rtol=close, atol=close)


def test_programs_are_solved_where_qpth_cannot_be_imported() -> None:
    code = (
        "import sys\nsys.modules['qpth'] = None\n"
        "import torch\nfrom geomerge.steps.qp.solve import solve_qp\n"
        "one = torch.eye(2)\nprint(solve_qp(one, one[0], one, one[1]).solvers)"
    )
    run = [sys.executable, "-W", "error", "-c", code]
    out = subprocess.run(run, check=True, text=True, capture_output=True)
    assert out.stdout.strip() == "('clarabel',)"


@with_qpth
def test_qpth_is_imported_when_a_program_is_solved_and_not_before() -> None:
    code = (
        "import sys, torch\nfrom geomerge.steps.qp.solve import solve_qp\n"
        "assert not {'qpth', 'clarabel'} & set(sys.modules)\n"
        "one = torch.eye(2)\nsolve_qp(one, one[0], one, one[1])\nassert 'qpth' in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
