"""Steps in a metric: trust region, preconditioned, constrained, and compensating steps."""

from geomerge.steps.compensation import Compensation, compensate
from geomerge.steps.constraints import BudgetStep, budget_step, budget_steps
from geomerge.steps.group_rates import RateProgram, Rates, group_rates
from geomerge.steps.qp.solve import QPSolution, solve_qp
from geomerge.steps.step_gradient import step_gradient
from geomerge.steps.trust_region import (
    Step,
    damped_step,
    precondition,
    preconditioned_move,
    preconditioned_step,
    trust_region_step,
)

__all__ = [
    "BudgetStep",
    "Compensation",
    "QPSolution",
    "RateProgram",
    "Rates",
    "Step",
    "budget_step",
    "budget_steps",
    "compensate",
    "damped_step",
    "group_rates",
    "precondition",
    "preconditioned_move",
    "preconditioned_step",
    "solve_qp",
    "step_gradient",
    "trust_region_step",
]
