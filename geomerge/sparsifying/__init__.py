"""The recipes that take weights away: sparsify, reconfigure, inspect."""
