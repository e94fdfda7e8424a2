"""Quadratic programs, solved and verified."""
