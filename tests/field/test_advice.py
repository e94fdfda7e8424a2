"""Advice of messages: every option, argument and value that one recommends exists."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geomerge as gm
from geomerge.cli.commands import COMMANDS, load_command
from geomerge.cli.console import _SAID
from geomerge.comparison import CompareOptions
from geomerge.continual.options import ContinualOptions
from geomerge.expert_options import DataOptions, ExpertOptions
from geomerge.options import OptionField, option_fields
from geomerge.pruning.options import InspectOptions, ReconfigureOptions, SparsifyOptions
from geomerge.strategies.options import StreamOptions

ROOT = Path(__file__).parents[2]
OPTIONS = (
    gm.MergeOptions, CompareOptions, ContinualOptions, DataOptions, ExpertOptions, InspectOptions,
    ReconfigureOptions, SparsifyOptions, StreamOptions,
)  # fmt: skip
# Words that follow an option's name and are no value of it.
WORDS = set(
    re.findall(
        r"\w+",
        "a an and are as asks at bounds can cannot changes does each fixes for gives has in "
        "instead is it keeps lets may measures mixes moves must names needs not of once one or out "
        "reaches speaks takes than that the to together too wants where which with",
    )
)


def fields() -> dict[str, list[OptionField]]:
    """Return the options of all classes by their names."""
    found: dict[str, list[OptionField]] = {}
    for cls in OPTIONS:
        for field in option_fields(cls):
            found.setdefault(field.name, []).append(field)
    return found


OTHERS = {"modules_to_save"}  # options of other packages: of PEFT, in an adapter's own file


def choices_of(field: OptionField) -> list[str]:
    """Return the values of an option that has a list of them."""
    choices = field.choices() if callable(field.choices) else field.choices
    return list(choices or ())


def arguments() -> set[str]:
    """Return the arguments of all public functions, methods and constructors."""
    from geomerge import strategies

    names: set[str] = set()
    for package in (gm, strategies):
        for name in package.__all__:
            thing: Any = getattr(package, name)
            parts = [thing, *vars(thing).values()] if inspect.isclass(thing) else [thing]
            for part in parts:
                part = getattr(part, "__func__", part)
                if callable(part):
                    try:
                        names |= set(inspect.signature(part).parameters)
                    except ValueError:
                        continue
    return names


def flags() -> set[str]:
    """Return the flags of all commands, without their dashes."""
    found = {"version", "help"}
    for name in COMMANDS:
        for parameter in load_command(name).params:
            found |= {flag.lstrip("-") for flag in (*parameter.opts, *parameter.secondary_opts)}
    return found


def sentences() -> Iterator[tuple[str, str]]:
    """Yield all texts in the code that are no docstrings, with the place of each."""
    for folder in ("geomerge", "strategies", "cli"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            if any(part.is_symlink() for part in (file, *file.parents)):
                continue
            tree = ast.parse(file.read_text())
            docs = {
                id(node.value) for node in ast.walk(tree)
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            }  # fmt: skip
            inside: set[int] = set()
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    inside |= {id(part) for part in node.values}
                    parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                    yield f"{file.name}:{node.lineno}", "".join(map(str, parts))
                elif (
                    isinstance(node, ast.Constant)
                    and isinstance(node.value, str)
                    and id(node) not in docs | inside
                ):
                    yield f"{file.name}:{node.lineno}", node.value


TOLD = [(place, text) for place, text in sentences() if "`" in text or " --" in text]


def test_every_argument_that_a_message_names_exists() -> None:
    known = fields().keys() | arguments() | flags() | {f.replace("-", "_") for f in flags()}
    known |= _SAID.keys() | OTHERS
    wrong = [
        (place, name)
        for place, text in TOLD
        for name in re.findall(r"`([a-z_-]+)`", text)
        if name.replace("-", "_") not in known
    ]
    assert not wrong


def test_every_flag_that_a_message_names_exists() -> None:
    known = flags()
    wrong = [
        (place, name)
        for place, text in TOLD
        for name in re.findall(r"(?<!\S)--([a-z][a-z-]+)", text)
        if name not in known
    ]
    assert not wrong


def test_every_value_that_a_message_recommends_is_one() -> None:
    known, wrong = fields(), []
    for place, text in TOLD:
        for name, value in re.findall(r"`([a-z_]+)` '?([a-z][a-z0-9-]*)", text):
            choices = {c for field in known.get(name, ()) for c in choices_of(field)}
            if choices and value not in choices | WORDS:
                wrong.append((place, name, value))
    assert not wrong


def test_the_command_line_has_a_flag_where_it_says_an_argument_otherwise() -> None:
    known = arguments() | fields().keys()
    for argument, flag in _SAID.items():
        assert argument in known | {"architecture"}, argument
        assert flag in {f.replace("-", "_") for f in flags()} | {"networks"}, flag
