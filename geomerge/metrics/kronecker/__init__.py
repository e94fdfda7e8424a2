"""The Kronecker-factored metric, layer by layer."""
