"""Quadratic programs, solved and verified."""

from geomerge.steps.qp.backends import qp_solver
from geomerge.steps.qp.solve import QPSolution, solve_qp

__all__ = ["QPSolution", "qp_solver", "solve_qp"]
