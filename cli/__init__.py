"""Command line of geomerge: a module for each command."""
