"""Sparsification and reconfiguration: what can go, in which order, and the walks there."""
