"""Command line of geomerge, one module per command."""
