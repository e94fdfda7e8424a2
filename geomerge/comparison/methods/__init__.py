"""Methods of the comparison table, grouped by idea.

Every function that carries :func:`~geomerge.comparison.registry.method` is a row of the table.
"""
