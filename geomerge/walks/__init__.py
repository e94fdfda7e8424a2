"""Walks in weight space: objectives, step rules, constraints."""
