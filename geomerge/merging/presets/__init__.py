"""Presets of a merge: how the networks' weights are walked, one file each."""
