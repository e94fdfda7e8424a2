"""Option fields: one declaration gives the default, the help text, the check and the recipe.

An options class is a frozen dataclass of at most ten fields made by :func:`option`, some of which
may be options classes themselves (*pieces*). Names are unique over all pieces of a class, so that
options can be given, recorded and completed as one flat list of names.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypedDict, TypeVar, Unpack, cast

from geomerge.errors import OptionError, did_you_mean

__all__ = [
    "FlatOptions",
    "OptionField",
    "at_least",
    "build_options",
    "callable_name",
    "check_known",
    "check_options",
    "check_positive",
    "option",
    "option_fields",
    "parse_size",
    "piece",
    "positive",
    "read_names",
    "recorded",
    "replace_options",
    "restore_options",
]

T = TypeVar("T")
Choices = Sequence[str] | Callable[[], Sequence[str]]

_UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3}
_KEY = "geomerge"
_USUAL = {
    "flag": None, "recorded": True, "formerly": None, "closed": True, "positional": False,
    "read": None, "write": None,
}  # fmt: skip


@dataclass(frozen=True)
class OptionField:
    """One option, wherever it is nested.

    Attributes:
        name: Name of the argument in Python; the flag is ``--name`` with dashes.
        path: Names of the pieces that lead to it, outermost first; empty for a field of the class.
        default: Value where nothing is given.
        annotation: Type of the field, as written.
        text: Help text, a noun phrase.
        group: Heading in the help that it stands under.
        flag: Flag of the command line, where that is another than the name.
        recorded: Whether it decides the result, and so belongs in a recipe; ``"given"`` where it
            belongs there only if it has another value than the default.
        choices: Names that are allowed or completed, or what lists them; None allows any value.
        formerly: Earlier name of the argument, still understood; None if there was none.
        positional: Whether the command line has an argument without a flag for it.
        closed: Whether names other than the choices are refused.
        read: Function from the words of the command line to the value; None for plain values.
        write: Function from the value to these words, which recipes hold too.
    """

    name: str
    path: tuple[str, ...]
    default: Any
    annotation: Any
    text: str
    group: str
    flag: str | None
    recorded: bool | str
    choices: Choices | None
    formerly: str | None = None
    positional: bool = False
    closed: bool = True
    read: Callable[[Sequence[str]], Any] | None = None
    write: Callable[[Any], list[str]] | None = None


class _Rest(TypedDict, total=False):
    flag: str | None
    recorded: bool | str
    formerly: str | None
    closed: bool
    positional: bool
    read: Callable[[Sequence[str]], Any] | None
    write: Callable[[Any], list[str]] | None


def option(
    default: T,
    text: str,
    *,
    group: str = "",
    choices: Choices | None = None,
    check: Callable[[Any], str | None] | None = None,
    **rest: Unpack[_Rest],
) -> T:
    """Declare a field of an options class.

    Args:
        default: Value where nothing is given. None means that geomerge chooses.
        text: Help text: a noun phrase, with the unit and what None does.
        group: Heading in the help that it stands under.
        choices: Names that are allowed, or a function that lists them when they are needed.
        check: Function of a value that is not None; it returns what was expected, such as
            ``"a positive number"``, where the value cannot be used, else None.
        **rest: ``flag``, the flag of the command line without dashes, where that is another than
            the name; ``recorded`` (True), whether the option decides the result, and so belongs in
            a recipe, or ``"given"`` where only another value than the default does, since recipes
            of earlier versions are without it; ``formerly``, the earlier name of the argument,
            understood with a ``DeprecationWarning``; ``closed`` (True), whether names other than
            the choices are refused here, else the shell only completes them; ``positional``
            (False), whether the command line has an argument without a flag for it; ``read``, the
            function from the words of the command line to the value, where that is an object;
            ``write``, the function from the value to these words, which recipes hold too.
    """
    known: dict[str, Any] = {"text": text, "group": group, "choices": choices, "check": check}
    return field(default=default, metadata={_KEY: {**known, **_USUAL, **rest}})


def piece(cls: type[T]) -> T:
    """Declare a field of an options class that is an options class itself."""
    return field(default_factory=cls)


def option_fields(cls: type[Any], path: tuple[str, ...] = ()) -> Iterator[OptionField]:
    """Yield every option of an options class, those of its pieces where the piece stands.

    Fields that are keywords only, such as those of a base class, come last.
    """
    for one in sorted(fields(cls), key=lambda field: field.kw_only is True):
        known = one.metadata.get(_KEY)
        if known is not None:
            yield OptionField(
                one.name, path, one.default, one.type, known["text"], known["group"],
                known["flag"], known["recorded"], known["choices"], known["formerly"],
                known["positional"], known["closed"], known["read"], known["write"],
            )  # fmt: skip
        else:
            assert isinstance(one.default_factory, type), f"{one.name} is no option and no piece"
            yield from option_fields(one.default_factory, (*path, one.name))


def check_options(options: Any) -> None:
    """Refuse values of an options object's own fields that cannot be used.

    Args:
        options: Instance of an options class; to be called from its ``__post_init__``.

    Raises:
        OptionError: If a value cannot be used.
    """
    for one in fields(options):
        known = one.metadata.get(_KEY)
        value = getattr(options, one.name)
        if known is None or value is None:
            continue
        if known["choices"] is not None and known["closed"]:
            names = known["choices"]() if callable(known["choices"]) else known["choices"]
            for name in value if isinstance(value, tuple) else (value,):
                check_known(one.name.replace("_", " "), name, names)
        expected = known["check"](value) if known["check"] is not None else None
        if expected is not None:
            raise OptionError(f"expected `{one.name}` to be {expected}, got {value!r}; correct it")


class FlatOptions:
    """Base class of options made of pieces: keywords may be flat names.

    ``GivenOptions(steps=100)`` puts ``steps`` into the piece that declares it. A piece can be given
    whole too, by its own name; flat names then change it.
    """

    def __init__(self, *args: Any, **values: Any) -> None:
        own: tuple[dataclasses.Field[Any], ...] = fields(cast(Any, self))
        if len(args) > len(own):
            raise TypeError(f"{type(self).__name__} takes {len(own)} arguments, got {len(args)}")
        given = dict(zip([one.name for one in own], args, strict=False))
        if twice := given.keys() & values.keys():
            raise TypeError(f"{type(self).__name__} got {min(twice)!r} twice")
        given |= _by_piece(type(self), values)
        for one in own:
            if one.name in given:
                value = given[one.name]
            elif one.default is not dataclasses.MISSING:
                value = one.default
            elif one.default_factory is not dataclasses.MISSING:
                value = one.default_factory()
            else:
                raise TypeError(f"{type(self).__name__} needs {one.name!r}")
            if isinstance(value, (str, list)) and str(one.type).startswith("tuple["):
                value = (value,) if isinstance(value, str) else tuple(value)
            object.__setattr__(self, one.name, value)
        self.__post_init__()

    def __post_init__(self) -> None:
        """Check the options' own fields; pieces check theirs."""
        check_options(self)


def build_options(cls: type[T], values: Mapping[str, Any]) -> T:
    """Return options with values given by their flat names.

    Args:
        cls: The options class.
        values: Values by name; a piece may be given whole, by its own name.

    Raises:
        OptionError: If a name is unknown or a value cannot be used.
    """
    if issubclass(cls, FlatOptions):
        return cls(**values)
    return replace_options(cls(), **values)


def _by_piece(cls: type[Any], values: Mapping[str, Any], options: Any = None) -> dict[str, Any]:
    """Return values by the names of a class's own fields.

    Args:
        cls: The options class.
        values: Values by flat names, or by the names of pieces.
        options: Options whose pieces flat names change; None takes pieces of usual values.

    Raises:
        OptionError: If a name is unknown.
    """
    own = {one.name: one for one in fields(cls)}
    nested: dict[str, tuple[str, ...]] = {}
    earlier: dict[str, str] = {}
    for found in option_fields(cls):
        if found.path:
            nested[found.name] = found.path
        if found.formerly is not None:
            earlier[found.formerly] = found.name
    changes: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        now = earlier.get(name)
        if now is not None and name not in own and (now in own or name not in nested):
            warnings.warn(f"`{name}` is called `{now}` now", DeprecationWarning, 4)
            name = now
        if name in own:
            changes[name] = value
        elif name in nested:
            inner.setdefault(nested[name][0], {})[name] = value
        else:
            known = {*own, *nested}
            where = getattr(cls, "elsewhere", {}).get(name)
            if where is not None:
                raise OptionError(
                    f"`{name}` is no option of {cls.__name__} but of the networks' data; give it "
                    f"beside the options, as in {where.format(f'{name}={_as_given(value)}')}"
                )
            raise OptionError(f"unknown option `{name}`{did_you_mean(name, known)}")
    for name, part in inner.items():
        if name in changes:
            start = changes[name]
        elif options is not None:
            start = getattr(options, name)
        else:
            factory: Any = own[name].default_factory
            start = factory()
        changes[name] = replace_options(start, **part)
    return changes


def _as_given(value: Any) -> str:
    """Return a value as it is written in a call; an object is ``...``."""
    if isinstance(value, (tuple, list)):
        inner = ", ".join(map(_as_given, value))
        return inner if len(value) == 1 else f"[{inner}]"
    return repr(value) if isinstance(value, (str, int, float)) else "..."


def replace_options(options: T, **values: Any) -> T:
    """Return options with other values, given by their flat names.

    Raises:
        OptionError: If a name is unknown or a value cannot be used.
    """
    assert is_dataclass(options)
    changes = _by_piece(type(options), values, options)
    changed: Any = dataclasses.replace(options, **changes)  # type: ignore[type-var]
    return cast(T, changed)


def recorded(options: Any, *others: str) -> dict[str, Any]:
    """Return the options that decide the result by their flat names, as JSON keeps them.

    Args:
        options: Instance of an options class.
        others: Names that are left out beside those that do not decide the result.
    """
    found = {}
    for one in option_fields(type(options)):
        if not one.recorded or one.name in others:
            continue
        value = options
        for name in (*one.path, one.name):
            value = getattr(value, name)
        if one.recorded == "given" and value == one.default:
            continue
        if one.write is not None:
            value = one.write(value)
        elif callable(value):
            value = callable_name(value)
        found[one.name] = list(value) if isinstance(value, tuple) else value
    return found


def callable_name(value: Callable[..., Any]) -> str:
    """Return ``module:name`` of a function or class that was given as an object."""
    own = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{getattr(value, '__module__', type(value).__module__)}:{own}"


def restore_options(cls: type[T], values: Mapping[str, Any]) -> T:
    """Return the options that :func:`recorded` returned.

    Args:
        cls: The options class.
        values: Values by flat names, as JSON keeps them; those of no option are left out.

    Raises:
        OptionError: If a value cannot be used.
    """
    given = {}
    for one in option_fields(cls):
        if one.name not in values:
            continue
        value = values[one.name]
        if one.read is not None:
            value = one.read(value)
        given[one.name] = tuple(value) if isinstance(value, list) else value
    return build_options(cls, given)


def positive(value: Any) -> str | None:
    """Check that a number is positive and finite, for the ``check`` of an option."""
    return None if 0 < value < float("inf") else "a positive number"


def at_least(least: float) -> Callable[[Any], str | None]:
    """Return a check that a number is not below another, for the ``check`` of an option."""
    return lambda value: None if least <= value < float("inf") else f"{least:g} or more"


def check_known(what: str, value: str | None, known: Sequence[str]) -> None:
    """Refuse a name that is not known; None is no name.

    Raises:
        OptionError: If the name is none of them.
    """
    if value is not None and value not in known:
        raise OptionError(f"unknown {what} {value!r}{did_you_mean(value, known)}")


def check_positive(name: str, number: float | None) -> None:
    """Refuse a number that is not positive and finite; None is no number.

    Raises:
        OptionError: If it is not.
    """
    if number is not None and not 0 < number < float("inf"):
        raise OptionError(f"expected `{name}` to be a positive number, got {number}; correct it")


def read_names(words: Sequence[str]) -> tuple[str, ...]:
    """Return the names in words such as ``"slerp,regmean"``, for the ``read`` of an option."""
    return tuple(name.strip() for word in words for name in word.split(",") if name.strip())


def parse_size(text: str) -> int:
    """Parse a number of bytes such as ``"20MB"``.

    Raises:
        OptionError: If it is not a number of bytes.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMG]?B?)\s*", text.upper())
    unit = "" if found is None else found[2] if found[2].endswith("B") else found[2] + "B"
    size = 0 if found is None else int(float(found[1]) * _UNITS[unit])
    if size < 1:
        raise OptionError(f"expected a size such as 20MB, got {text!r}; give one")
    return size
