"""Factories of networks, as callables or by their names ``module:factory``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from torch import nn

from geomerge.errors import OptionError, first_line, type_of

__all__ = ["call_factory", "factory_name", "import_factory", "made_by", "network_from_factory"]


def import_factory(spec: str) -> Callable[[], Any]:
    """Import the callable named by ``module:factory``, also from the working folder.

    Args:
        spec: The module's dotted name, a colon, and the name of a callable in it.

    Returns:
        The callable.

    Raises:
        OptionError: If there is no such module or callable.
    """
    module, _, attribute = spec.partition(":")
    if module.partition(".")[0] in sys.stdlib_module_names:  # a file could name os:abort
        raise OptionError(
            f"{spec!r} is of Python itself, expected module:factory with a module of your own; "
            "name one"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = attrgetter(attribute)(importlib.import_module(module))
    except Exception as error:  # user code raises errors of any type
        raise OptionError(
            f"cannot import {spec!r} ({first_line(error)}); expected module:factory with the "
            "module in the working folder or installed, or the callable itself as `arch`"
        ) from error
    if not callable(found):
        raise OptionError(f"{spec!r} is {type_of(found)}, expected a callable; name one")
    factory: Callable[[], Any] = found
    return factory


def factory_name(factory: Callable[[], Any]) -> str | None:
    """Return the name ``module:factory`` of an importable callable; None for others.

    Functions of a script or notebook, nested functions and lambdas are not importable.
    """
    module = getattr(factory, "__module__", None)
    own = getattr(factory, "__qualname__", None)
    if not module or not own or module == "__main__" or "<" in own:
        return None
    if module.partition(".")[0] in sys.stdlib_module_names:
        return None
    try:
        found = attrgetter(own)(sys.modules[module])
    except (KeyError, AttributeError):
        return None
    return f"{module}:{own}" if found is factory else None


def call_factory(spec: str) -> Any:
    """Import and call ``module:factory``.

    Raises:
        OptionError: If it cannot be imported or fails without arguments.
    """
    return _called(import_factory(spec), spec)


def _called(factory: Callable[[], Any], name: str) -> Any:
    try:
        return factory()
    except Exception as error:  # user code raises errors of any type
        raise OptionError(
            f"{name!r} failed ({type(error).__name__}: {first_line(error)}); expected a callable "
            "that works without arguments"
        ) from error


def network_from_factory(spec: str) -> nn.Module:
    """Return the network made by ``module:factory``.

    Raises:
        OptionError: If it cannot be imported, fails, or returns something else.
    """
    return _checked(call_factory(spec), spec)


def made_by(factory: Callable[[], Any]) -> nn.Module:
    """Return the network made by a factory.

    Raises:
        OptionError: If it fails without arguments or returns something else.
    """
    name = getattr(factory, "__qualname__", repr(factory))
    return _checked(_called(factory, name), name)


def _checked(module: Any, name: str) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise OptionError(f"{name!r} returned {type_of(module)}, expected an nn.Module; return one")
    return module
