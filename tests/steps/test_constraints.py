from __future__ import annotations

import subprocess
import sys

import clarabel
import pytest
import torch
from scipy.optimize import nnls
from scipy.sparse import csc_matrix
from torch import Tensor, nn

from geomerge import KroneckerMetric, Network
from geomerge.errors import NumericalError
from geomerge.metrics import EuclideanMetric, Metric
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.steps import budget_step, budget_steps, damped_step, step_gradient
from geomerge.testing import dense_kronecker

BETA = 0.7


def kronecker(dtype: torch.dtype = torch.float64) -> KroneckerMetric:
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).to(dtype))
    return estimate_kronecker(network, network.initial, [torch.randn(3, 4, dtype=dtype)], "logits")


def draw(n: int, p: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(p + 1, n, dtype=torch.float64, generator=generator)
    return numbers[0], numbers[1:]


def half_used(
    metric: Metric, v: Tensor, rows: Tensor, damping: float, beta: float | None = BETA
) -> Tensor:
    """Limits of which every second one allows half of what the free step would use."""
    free = rows @ budget_step(metric, v, rows[:0], v[:0], damping, beta).tangent
    limits = free.abs() / 2
    limits[::2] *= 4
    return limits


def in_full_space(
    g: Tensor, v: Tensor, rows: Tensor, limits: Tensor, damping: float, beta: float
) -> tuple[Tensor, Tensor]:
    """All n weights as variables, solved by clarabel."""
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-10
    hessian = 2 * (g + damping * torch.eye(len(g), dtype=g.dtype))
    answer = clarabel.DefaultSolver(
        csc_matrix(hessian.triu().numpy()), (-beta * v).numpy(), csc_matrix(rows.numpy()),
        limits.numpy(), [clarabel.NonnegativeConeT(len(limits))], settings,
    ).solve()  # fmt: skip
    assert "Solved" in str(answer.status)
    return torch.tensor(answer.x, dtype=v.dtype), torch.tensor(answer.z, dtype=v.dtype)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("damping", [1e-3, 0.1, 10.0])
def test_the_dual_is_the_program_in_all_weights(damping: float, seed: int) -> None:
    g = kronecker()
    v, rows = draw(g.n, 8, seed)
    limits = half_used(g, v, rows, damping)
    step = budget_step(g, v, rows, limits, damping, BETA)
    theta, prices = in_full_space(dense_kronecker(g), v, rows, limits, damping, BETA)
    assert (step.multipliers > 1e-4).any()
    assert (step.multipliers == 0).any()
    torch.testing.assert_close(step.tangent, theta, rtol=0, atol=1e-8 * float(theta.norm()))
    torch.testing.assert_close(step.multipliers, prices, rtol=0, atol=1e-6 * float(prices.max()))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("log_damping", [-6, -3, 0])
def test_steps_satisfy_the_optimality_conditions(log_damping: int, seed: int) -> None:
    g, damping = kronecker(), 10.0**log_damping
    v, rows = draw(g.n, 12, seed)
    limits = half_used(g, v, rows, damping)
    step = budget_step(g, v, rows, limits, damping, BETA)
    dense, theta = dense_kronecker(g), step.tangent
    slope = 2 * (dense @ theta + damping * theta) - BETA * v + rows.T @ step.multipliers
    scale = float(theta.norm()) * rows.norm(dim=1)
    excess = rows @ theta - limits
    assert float(slope.norm()) <= 1e-9 * BETA * float(v.norm())
    assert (excess <= 1e-9 * scale).all()
    assert (step.multipliers >= 0).all()
    assert (step.multipliers * excess.abs() <= 1e-9 * scale * step.multipliers.max()).all()
    torch.testing.assert_close(step.excess, excess, rtol=1e-8, atol=1e-9 * float(scale.max()))
    assert step.norm == pytest.approx(float(theta.norm()), rel=1e-9)
    assert step.predicted == pytest.approx(float(theta @ dense @ theta), rel=1e-6)
    assert step.called_qp
    assert step.residual <= 1e-7


@pytest.mark.parametrize("p", [0, 5])
def test_budgets_that_are_kept_anyway_leave_the_damped_step(p: int) -> None:
    g = kronecker()
    v, rows = draw(g.n, p, 0)
    step = budget_step(g, v, rows, torch.full((p,), 1e3), 0.1)
    expected = damped_step(g, v, 0.1, radius=1e9)
    torch.testing.assert_close(step.tangent, expected.tangent)
    assert step.norm == pytest.approx(expected.norm)
    assert step.predicted == pytest.approx(expected.predicted)
    assert step.multipliers.tolist() == [0] * p
    assert not step.called_qp
    assert step.residual == 0


def test_qpth_is_not_imported_where_no_budget_is_broken() -> None:
    code = (
        "import sys, torch\nfrom geomerge.metrics import EuclideanMetric\n"
        "from geomerge.steps import budget_step\nv = torch.ones(3)\n"
        "budget_step(EuclideanMetric(), v, v[None], torch.tensor([10.]), 0.1)\n"
        "assert not {'qpth', 'clarabel', 'cvxpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("seed", range(3))
def test_the_euclidean_metric_gives_gems_projection(seed: int) -> None:
    """The vector nearest to v that descends no remembered task, as non-negative least squares."""
    v, gradients = draw(20, 6, seed)
    prices, _ = nnls(-gradients.T.numpy(), v.numpy())
    projected = v + gradients.T @ torch.tensor(prices)
    assert (gradients @ v < 0).any()
    step = budget_step(EuclideanMetric(), v, -gradients, torch.zeros(6), 0.3)
    torch.testing.assert_close(step.tangent, projected, rtol=1e-8, atol=1e-9)


def test_a_batch_is_its_elements() -> None:
    g = kronecker()
    v, rows = draw(g.n, 6, 1)
    dampings = torch.tensor([1e-3, 0.1, 1.0, 0.1]).double()
    limits = torch.stack([half_used(g, v, rows, float(mu)) for mu in dampings])
    limits[3] = 1e3
    for step, mu, d in zip(
        budget_steps(g, v, rows, limits, dampings, BETA), dampings, limits, strict=True
    ):
        alone = budget_step(g, v, rows, d, float(mu), BETA)
        torch.testing.assert_close(step.tangent, alone.tangent, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(step.multipliers, alone.multipliers, rtol=1e-8, atol=1e-10)
        assert (step.called_qp, step.damping) == (alone.called_qp, float(mu))
    one = budget_steps(g, v, rows, limits[:1], dampings, BETA)
    other = budget_steps(g, v, rows, limits, dampings[:1], BETA)
    assert [len(one), len(other)] == [4, 4]
    torch.testing.assert_close(one[0].tangent, other[0].tangent)


def test_contradicting_limits_are_broken_as_little_as_possible() -> None:
    g = kronecker()
    v, rows = draw(g.n, 4, 2)
    rows[1] = -rows[0]
    limits = torch.tensor([-0.3, 0.1, 0.2, 0.0]).double()  # rows 0 and 1 miss each other by 0.2
    step = budget_step(g, v, rows, limits, 0.1, BETA)
    broken = (rows @ step.tangent - limits).clamp(min=0)
    assert float(broken.sum()) == pytest.approx(0.2, rel=1e-4)
    assert float(broken[2:].max()) <= 1e-6
    torch.testing.assert_close(step.excess.clamp(min=0), broken, rtol=1e-5, atol=1e-6)


def test_rows_that_repeat_or_vanish_or_have_no_limit_change_nothing() -> None:
    g = kronecker()
    v, rows = draw(g.n, 3, 3)
    limits = half_used(g, v, rows, 0.1) / 100
    step = budget_step(g, v, rows, limits, 0.1, BETA)
    more = torch.cat([rows, rows, 1e-20 * rows, draw(g.n, 3, 4)[1]])
    wide = torch.cat([limits, limits, -torch.ones(3), torch.full((3,), torch.inf)])
    same = budget_step(g, v, more, wide, 0.1, BETA)
    torch.testing.assert_close(same.tangent, step.tangent, rtol=1e-8, atol=1e-10)
    prices = same.multipliers.view(4, 3)
    torch.testing.assert_close(prices[0] + prices[1], step.multipliers, rtol=1e-6, atol=1e-9)
    assert (prices[2:] == 0).all()


def test_limits_far_away_do_not_blur_those_that_bind() -> None:
    g = kronecker()
    v, rows = draw(g.n, 6, 1)
    limits = half_used(g, v, rows, 0.1)
    step = budget_step(g, v, rows, limits, 0.1, BETA)
    limits[::2] = 1e12
    far = budget_step(g, v, rows, limits, 0.1, BETA)
    torch.testing.assert_close(far.tangent, step.tangent, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_the_unit_of_a_budget_does_not_matter(scale: float) -> None:
    g = kronecker()
    v, rows = draw(g.n, 5, 1)
    limits = half_used(g, v, rows, 0.1)
    step = budget_step(g, v, rows, limits, 0.1, BETA)
    units = torch.tensor([1, scale, 1, scale, 1]).double()
    other = budget_step(g, v, units[:, None] * rows, units * limits, 0.1, BETA)
    torch.testing.assert_close(other.tangent, step.tangent, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(other.multipliers * units, step.multipliers, rtol=1e-7, atol=1e-10)


def test_weights_in_float32_keep_their_budgets() -> None:
    g = kronecker(torch.float32)
    v, rows = (t.float() for t in draw(g.n, 6, 1))
    limits = half_used(g, v, rows, 0.1)
    step = budget_step(g, v, rows, limits, 0.1, BETA)
    assert step.tangent.dtype == torch.float32
    assert step.multipliers.dtype == step.excess.dtype == torch.float64
    assert (step.multipliers > 0).any()
    theta = step.tangent.double()
    scale = rows.double().norm(dim=1) * theta.norm()
    assert (rows.double() @ theta - limits <= 1e-6 * scale).all()
    slope = 2 * (dense_kronecker(g).double() @ theta + 0.1 * theta) - BETA * v.double()
    slope += rows.double().T @ step.multipliers
    assert float(slope.norm()) <= 1e-5 * float((BETA * v).norm())


@pytest.mark.parametrize("name", ["v", "rows", "limits"])
def test_what_is_not_finite_is_refused(name: str) -> None:
    p = {"v": torch.ones(3), "rows": torch.ones(2, 3), "limits": torch.ones(2)}
    p[name].view(-1)[1] = float("nan")
    with pytest.raises(NumericalError, match="hold NaN or infinity"):
        budget_step(EuclideanMetric(), p["v"], p["rows"], p["limits"], 0.1)


@pytest.mark.parametrize("metric", [kronecker(), EuclideanMetric()], ids=lambda g: g.name)
@pytest.mark.parametrize("beta", [BETA, None])
@pytest.mark.parametrize("kind", ["some bind", "none binds", "contradicting"])
def test_gradients_of_a_step_are_its_finite_differences(
    kind: str, beta: float | None, metric: Metric
) -> None:
    damping, n = 0.1, 23
    v, rows = draw(n, 6, 1)
    q = draw(n, 0, 9)[0]
    limits = half_used(metric, v, rows, damping, beta)
    if kind == "none binds":
        limits = limits + 1e3
    elif kind == "contradicting":
        rows[1] = -rows[0]
        limits[:2] = torch.tensor([-0.2, 0.1])

    def measured(log_mu: float, d: Tensor) -> float:
        return float(q @ budget_step(metric, v, rows, d, 10**log_mu, beta).tangent)

    at = torch.tensor(damping).log10().item()
    by_log_mu, by_limits = step_gradient(metric, v, rows, limits, 10**at, beta, q)
    h = 1e-4
    expected = (measured(at + h, limits) - measured(at - h, limits)) / (2 * h)
    natural = torch.tensor(10.0).double().log().item()
    assert by_log_mu == pytest.approx(expected / natural, rel=1e-5, abs=1e-9)
    for i in range(6):
        step = h * (torch.arange(6) == i)
        change = (measured(at, limits + step) - measured(at, limits - step)) / (2 * h)
        assert float(by_limits[i]) == pytest.approx(change, rel=1e-5, abs=1e-7)
    assert (by_limits != 0).any() == (kind != "none binds")
