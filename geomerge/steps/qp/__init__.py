"""Quadratic programs, solved and verified."""

from geomerge.steps.qp.solve import QPSolution, solve_qp

__all__ = ["QPSolution", "solve_qp"]
