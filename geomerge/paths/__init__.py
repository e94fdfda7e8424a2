"""Paths between networks: recorded, stored, measured, relaxed."""
