"""Registries of named objects: metrics, presets, pick rules, methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, TypeVar

from geomerge.errors import OptionError, did_you_mean

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """Named objects of one kind, each declared in a module of its own.

    Args:
        kind: Noun for messages, such as ``"metric"``.
        package: Dotted name of the package whose modules declare the objects; they are imported
            at the first look-up of a name.
        order: Sort key of the objects; None keeps the order of modules and declarations.
    """

    def __init__(self, kind: str, package: str, *, order: Callable[[T], Any] | None = None) -> None:
        self.kind = kind
        self._package = package
        self._order = order
        self._objects: dict[str, T] = {}
        self._complete = False

    def add(self, name: str, thing: T) -> T:
        """Put an object into the registry and return it."""
        assert name not in self._objects, f"two {self.kind}s are called {name}"
        self._objects[name] = thing
        return thing

    def put(self, name: str) -> Callable[[T], T]:
        """Return a decorator that puts what it decorates into the registry."""
        return lambda thing: self.add(name, thing)

    def __getitem__(self, name: str) -> T:
        """Return the object of a name.

        Raises:
            OptionError: If there is none, with the names that there are.
        """
        self._load()
        if name not in self._objects:
            raise OptionError(f"unknown {self.kind} {name!r}{did_you_mean(name, self._objects)}")
        return self._objects[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        self._load()
        return iter(self._objects)

    def __len__(self) -> int:
        """Return the number of objects."""
        self._load()
        return len(self._objects)

    def __contains__(self, name: object) -> bool:
        """Whether there is an object of the name."""
        self._load()
        return name in self._objects

    def names(self) -> tuple[str, ...]:
        """Return the names, in the registry's order."""
        return tuple(self)

    def _load(self) -> None:
        if self._complete:
            return
        package = import_module(self._package)
        for module in sorted(iter_modules(package.__path__), key=lambda m: m.name):
            import_module(f"{self._package}.{module.name}")
        if (order := self._order) is not None:
            ordered = sorted(self._objects.items(), key=lambda item: order(item[1]))
            self._objects = dict(ordered)
        self._complete = True
