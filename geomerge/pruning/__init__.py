"""Sparsification and reconfiguration: removable weights and units, their order, and the walks."""
