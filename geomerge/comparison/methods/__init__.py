"""Methods of the comparison table, one family per module.

Every function decorated with :func:`~geomerge.comparison.registry.method` is a row of the table.
"""
