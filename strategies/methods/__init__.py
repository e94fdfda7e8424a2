"""Methods of the stream table, grouped by idea.

Every function that carries :func:`~geomerge.strategies.registry.stream_method` is a method of the
table. Avalanche is imported within the functions: the names of rows are known without it.
"""
