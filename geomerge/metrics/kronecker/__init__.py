"""Kronecker-factored metric: factors per layer, and their estimation."""
