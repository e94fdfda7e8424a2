r"""Formulas as MathML: browsers draw them by themselves, without a script and without a network."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

__all__ = ["mathml", "setup"]

_BAR = '<mo stretchy="false" lspace="0" rspace="0">&#x0007C;'


def mathml(latex: str, display: str) -> str:
    """Return a formula as MathML.

    Args:
        latex: The formula, without dollars.
        display: ``"inline"`` or ``"block"``.
    """
    # The converter knows the numbered environments and not those within a formula.
    latex = re.sub(r"\\(begin|end)\{(aligned|gathered)\}", r"\\\1{align*}", latex.strip())
    found: str = convert(latex, display=display)
    # As an operator a bar has room on both sides; here it is a fence.
    return found.replace('<mo stretchy="false">&#x0007C;', _BAR)


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Make ``html_math_renderer = "mathml"`` known."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
