"""The reference has every public package and every name of ``geomerge``, and all commands."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import geomerge
from geomerge.cli.commands import COMMANDS
from geomerge.paths.energy import fine
from geomerge.pruning.masks import weakest

ROOT = Path(__file__).parents[2]
PAGES = "\n".join(page.read_text() for page in sorted((ROOT / "docs" / "api").glob("*.md")))
# Listed name by name, shown by their help, in a guide's table, or made of what is there.
WITHIN = {
    "geomerge.report.pages.assets", "geomerge.report.templates",  # no Python

    "geomerge", "geomerge.cli", "geomerge.comparison.methods", "geomerge.report.pages",
    "geomerge.strategies.methods",
}  # fmt: skip


def test_every_name_of_geomerge_is_there() -> None:
    documented = set(re.findall(r"^\.\. auto\w+:: geomerge\.(\w+)$", PAGES, re.M))
    assert set(geomerge.__all__) - {"__version__"} <= documented


def test_every_package_is_there() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    documented = set(re.findall(r"^\.\. automodule:: (\S+)$", PAGES, re.M))
    assert set(config["packages"]) - WITHIN <= documented


def extension(name: str) -> Any:
    pytest.importorskip("sphinx", reason="the site's packages are not installed")
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "_ext" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_commands_are_those_of_the_help() -> None:
    text = extension("commands").command_help()
    titles = re.findall(r"^## `geomerge (\S+)`$", text, re.M)
    assert titles == list(COMMANDS)


def test_shapes_are_read_off_signatures() -> None:
    shapes_of = extension("docstrings").shapes_of
    assert shapes_of(fine) == ({"points": "T + 1 of (n,)"}, None)
    assert shapes_of(weakest) == (
        {"scores": "(n,)", "candidates": "(n,), bool"}, "(n,), bool"
    )  # fmt: skip
    assert shapes_of(re.compile("")) == ({}, None)


def test_bars_outside_of_literals_are_escaped() -> None:
    escaped = extension("docstrings").escaped
    assert escaped("|theta| and ``a|b`` and :math:`|v|`") == (
        r"\|theta\| and ``a|b`` and :math:`|v|`"
    )
