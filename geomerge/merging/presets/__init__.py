"""Presets of a merge: walks between the networks' weights, one file each."""
