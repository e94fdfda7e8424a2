"""Avalanche strategies: the only package of geomerge that may import Avalanche."""
