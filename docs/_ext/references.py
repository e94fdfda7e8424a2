"""Names in docstrings and signatures that lead to where the reference has them.

A docstring says :class:`Task` of what the reference lists as ``geomerge.Task`` and the code keeps
in ``geomerge.data.task``. What is there but not in the reference stays a name without a link;
what is not there at all is a mistake, of which Sphinx warns.
"""

from __future__ import annotations

import importlib
from typing import cast

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PythonDomain
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

__all__ = ["setup"]


def _by_last_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.Element | None:
    """Return a link to the one public object whose last name the reference has."""
    if node.get("refdomain") != "py" or not node.get("reftarget", "").strip("."):
        return None
    target = node["reftarget"]
    own = [target, f"{node.get('py:module')}.{target}"]
    if not any(name.startswith("geomerge") for name in own):
        return None
    domain = cast(PythonDomain, env.get_domain("py"))
    last = target.rpartition(".")[2]
    found = {
        entry.node_id: entry
        for name, entry in domain.objects.items()
        if name.startswith("geomerge.") and name.rpartition(".")[2] == last and not entry.aliased
    }
    if len(found) != 1:
        return content if any(map(_is_there, own)) else None
    (entry,) = found.values()
    return make_refnode(
        app.builder, node["refdoc"], entry.docname, entry.node_id, content, node["reftarget"]
    )


def _is_there(name: str) -> bool:
    """Return whether a dotted name is that of a module of geomerge or of something in one."""
    if not name.startswith("geomerge"):
        return False
    module, _, last = name.rpartition(".")
    for home in (name, module):
        try:
            found = importlib.import_module(home)
        except ImportError:
            continue
        if home == name or hasattr(found, last):
            return True
    return False


def setup(app: Sphinx) -> dict[str, bool]:
    """Look for a name that is not where the docstring says."""
    app.connect("missing-reference", _by_last_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
