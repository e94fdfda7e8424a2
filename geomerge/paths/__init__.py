"""Paths in weight space: recording, storage, energy and length, relaxation."""
