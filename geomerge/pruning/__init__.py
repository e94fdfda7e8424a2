"""Sparsification and reconfiguration of networks by walks that remove weights and units."""
