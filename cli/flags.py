"""Conversion of options classes to flags of a command."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from typer.models import OptionInfo

from geomerge.cli.complete import completion
from geomerge.cli.console import speaking
from geomerge.errors import OptionError
from geomerge.options import OptionField, build_options, option_fields, read_names

__all__ = ["Flags", "command"]

_TYPES: Mapping[str, type] = {"str": str, "int": int, "float": float, "bool": bool, "Path": Path}
_METAVARS = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}
_WIDEST = 50  # characters; longer lists of choices are not shown after the flag


@dataclass(frozen=True)
class Flags:
    """Selection of the options of a class that become flags, in ``Annotated[Class, Flags(...)]``.

    Attributes:
        only: Names of options and groups of options with flags; empty means all.
        without: Names of options and groups of options without flags.
        defaults: Defaults of the command that differ from those of the class, by name.
        of: Options class whose unchecked values are passed to the command by name; None builds
            options of the annotated class.
    """

    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    of: type[Any] | None = None

    def choose(self, cls: type[Any]) -> list[OptionField]:
        """Return the options of a class with flags."""
        return [
            one
            for one in option_fields(cls)
            if not {*one.path, one.name} & {*self.without}
            and (not self.only or {*one.path, one.name} & {*self.only})
        ]


@dataclass(frozen=True)
class _Built:
    """Options class among the parameters of a command."""

    cls: type[Any]
    flags: Flags
    options: list[OptionField]

    def from_words(self, words: dict[str, Any]) -> Any:
        """Build options from words of the command line, which are removed from ``words``."""
        if self.flags.of is not None:
            return dict(_values(self.options, words, read=False))
        return build_options(self.cls, dict(_values(self.options, words)))


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Return a command in which parameters with options classes are replaced by flags.

    Args:
        function: Function whose other parameters are typer's arguments and options.
    """
    parameters = [inspect.Parameter("context", _KEYWORD, annotation=typer.Context)]
    built: dict[str, _Built] = {}
    numbers: dict[str, type] = {}
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        found = _options_class(parameter.annotation)
        if found is not None:
            built[parameter.name] = found
            parameters += [_parameter(one, found.flags.defaults) for one in found.options]
            continue
        kind, parameter = _in_words(parameter)
        parameters.append(parameter)
        if kind in (int, float):
            numbers[parameter.name] = kind

    parameters.append(_verbose())

    def run(context: typer.Context, verbose: bool = False, **words: Any) -> None:
        with speaking(_flags_by_name(context), words.get("log_json", False), verbose):
            values = {name: one.from_words(words) for name, one in built.items()}
            for name, kind in numbers.items():
                words[name] = _value(name, kind, words[name])
            function(**values, **words)

    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def _verbose() -> inspect.Parameter:
    """Return the option ``--verbose`` of every command."""
    info = typer.Option(
        "--verbose",
        help="original messages of other packages, after errors of geomerge",
        rich_help_panel="other options",
    )
    return inspect.Parameter("verbose", _KEYWORD, annotation=Annotated[bool, info], default=False)


def _options_class(annotation: Any) -> _Built | None:
    flags = Flags()
    if get_origin(annotation) is Annotated:
        annotation, *notes = get_args(annotation)
        flags = next((note for note in notes if isinstance(note, Flags)), flags)
    annotation = flags.of or annotation
    if not isinstance(annotation, type) or not is_dataclass(annotation):
        return None
    return _Built(annotation, flags, flags.choose(annotation))


def _in_words(parameter: inspect.Parameter) -> tuple[type | None, inspect.Parameter]:
    """Return the type of a command's own option, and the option with numbers as words.

    Numbers are parsed here, since typer's messages do not quote the invalid word.
    """
    parameter = parameter.replace(kind=_KEYWORD)
    annotation, shown = get_args(parameter.annotation)
    if not isinstance(shown, OptionInfo):
        return None, parameter
    kind = next(k for k in _TYPES.values() if annotation in (k, k | None, *_lists(k)))
    shown = copy(shown)
    shown.metavar = shown.metavar or _METAVARS.get(kind)
    shown.autocompletion = shown.autocompletion or completion(parameter.name)
    default = parameter.default
    if kind in (int, float) and annotation in (kind, kind | None):
        annotation = str if annotation == kind else str | None
        default = default if default in (None, parameter.empty) else str(default)
    return kind, parameter.replace(annotation=Annotated[annotation, shown], default=default)


def _lists(kind: Any) -> tuple[Any, Any]:
    several: Any = list
    return several[kind], several[kind] | None


def _parameter(option: OptionField, defaults: Mapping[str, Any]) -> inspect.Parameter:
    """Return an option as a parameter for typer; positional ones are required."""
    kind, several = _type_of(option)
    default = defaults.get(option.name, option.default)
    annotation: Any = kind if kind in (bool, Path) else str
    if several:
        annotation, default = _lists(annotation)[1], [str(one) for one in default or ()] or None
    elif default is None:
        annotation = annotation | None
    elif kind is not bool:
        default = annotation(default)
    shown: dict[str, Any] = {"help": option.text, "rich_help_panel": option.group or None}
    shown["autocompletion"] = completion(option.name, option.choices)
    if kind is not bool:
        shown["metavar"] = _metavar(option, kind)
    else:
        shown["show_default"] = False
    info = typer.Argument(**shown) if option.positional else typer.Option(_flag(option), **shown)
    return inspect.Parameter(
        option.name, _KEYWORD, annotation=Annotated[annotation, info],
        default=inspect.Parameter.empty if option.positional else default,
    )  # fmt: skip


def _flag(option: OptionField) -> str:
    flag = option.flag or option.name.replace("_", "-")
    return f"--{flag}/--no-{flag}" if option.default is True else f"--{flag}"


def _type_of(option: OptionField) -> tuple[type, bool]:
    """Return the type of an option's words, and whether it is repeatable.

    Words for objects, such as the name of a task, are not converted.
    """
    if option.read is not None:
        return str, True
    written = str(option.annotation)
    kinds = (_TYPES[word] for word in re.findall(r"\w+", written) if word in _TYPES)
    return next(kinds, str), written.startswith("tuple[")


def _metavar(option: OptionField, kind: type) -> str:
    if option.choices is None or not option.closed:
        return _METAVARS[kind]
    names = option.choices() if callable(option.choices) else option.choices
    listed = f"[{'|'.join(names)}]"
    if _type_of(option)[1]:
        return "NAME,..."
    return listed if len(listed) <= _WIDEST else "NAME"


def _values(
    options: Iterable[OptionField], words: dict[str, Any], read: bool = True
) -> Iterator[tuple[str, Any]]:
    """Yield the values of options by name, removing their words.

    Args:
        options: Options.
        words: Words by the names of options.
        read: Whether to parse words for objects, such as budgets.
    """
    for option in options:
        kind, several = _type_of(option)
        word = words.pop(option.name)
        if option.read is not None and not read:
            yield option.name, tuple(word or ())
        elif option.read is not None:
            yield option.name, option.read(word) if word else option.default
        elif not several:
            yield option.name, _value(option.name, kind, word)
        else:
            parts = word or ()
            if option.choices is not None and option.closed:  # such as slerp,regmean
                parts = read_names(parts)
            yield option.name, tuple(_value(option.name, kind, part) for part in parts)


def _value(name: str, kind: type, word: Any) -> Any:
    """Convert a word of the command line to a value.

    Raises:
        OptionError: If a number is expected and the word is not one.
    """
    if kind not in (int, float) or word is None:
        return word
    try:
        return kind(word)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise OptionError(f"expected `{name}` to be {expected}, got {word!r}; correct it") from None


def _flags_by_name(context: typer.Context) -> dict[str, str]:
    """Return the flags of a command by name of the option."""
    found = {}
    for parameter in context.command.params:
        if parameter.name is not None:
            option = parameter.param_type_name == "option"
            found[parameter.name] = parameter.opts[0] if option else parameter.name.upper()
    return found
