"""Weights and units of a network that can go, and a network without them."""
