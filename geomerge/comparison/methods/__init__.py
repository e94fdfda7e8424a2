"""The methods of the comparison: every function here that carries the decorator is a row."""

from importlib import import_module
from pkgutil import iter_modules

from geomerge.comparison.registry import registered

__all__ = ["METHODS"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

METHODS = registered()
