"""Commands that take long: none is silent on a terminal, and Ctrl-C ends each with a sentence."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from geomerge.cli.commands import COMMANDS

MAIN = "from geomerge.cli.app import main; main()"
COMMAND = [sys.executable, "-W", "ignore", "-c", MAIN]
# Each step, or each measurement, takes a while: there is time to press Ctrl-C.
SLOW = (
    "import time, torch; cat, call = torch.cat, torch.nn.Module.__call__; "
    "torch.cat = lambda *a, **k: (time.sleep(0.2), cat(*a, **k))[1]; "
    "torch.nn.Module.__call__ = lambda *a, **k: (time.sleep(0.1), call(*a, **k))[1]"
)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_that_it_is_at_work(name: str) -> None:
    module = import_module(f"geomerge.cli.{name.replace('-', '_')}")
    called = {
        item.context_expr.func.id
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.With)
        for item in node.items
        if isinstance(item.context_expr, ast.Call) and isinstance(item.context_expr.func, ast.Name)
    }
    assert called & {"watched", "working"}


@pytest.mark.parametrize(
    ("words", "shown", "sentence"),
    [
        ("check a.pt b.pt --manifold digits", "checking a.pt and b.pt", "nothing was written"),
        (
            "sketch a.pt --manifold digits --out s.safetensors",
            "measuring a.pt, estimated",
            "nothing was",
        ),
        ("evaluate a.pt --manifold digits", "measuring a.pt", "nothing was written"),
        ("inspect a.pt --manifold digits", "measuring a.pt", "nothing was written"),
        (
            "compare a.pt b.pt --manifold digits --manifold b=digits-permuted --out run",
            "so far",
            "the same command goes on where this one stopped",
        ),
    ],
)
def test_ctrl_c_ends_in_one_sentence(
    words: str,
    shown: str,
    sentence: str,
    tiny: Path,
    terminal: Callable[..., Any],
) -> None:
    found = terminal([*COMMAND[:-1], f"{SLOW}; {MAIN}", *words.split()], tiny, 100, stop_at=shown)
    assert any(shown in one for one in found.screens)
    assert found.code == 130
    assert sentence in found.last
    assert len(found.last.splitlines()) == 1
