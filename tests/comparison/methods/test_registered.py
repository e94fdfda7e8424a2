"""Methods as a whole: every one is tested by the laws."""

from __future__ import annotations

import ast
from pathlib import Path

from geomerge.comparison import METHODS


def test_every_method_is_under_the_laws() -> None:
    names = set()
    for file in Path(__file__).parent.glob("test_*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and "MethodLaws" in ast.unparse(node):
                names |= {
                    ast.literal_eval(line.value)
                    for line in node.body
                    if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "name"
                }
    assert names == set(METHODS)
