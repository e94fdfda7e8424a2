"""How Sphinx makes the documentation site: ``make docs``."""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "geomerge"
author = "the authors of geomerge"
release = version = version_of("geomerge")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_nb",
    "sphinx_copybutton",
    "commands",
    "docstrings",
    "mathml",
    "references",
]
exclude_patterns = ["_ext", "_static", "**/.ipynb_checkpoints"]
nitpicky = True
# Of other projects' names nothing is known here: building the site needs no network.
nitpick_ignore_regex = [(r"py:.*", r"(?!geomerge\b).*")]

# Pages: Markdown as the repository's web page shows it.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are kept with their outputs
nb_render_markdown_format = "myst"

# The reference: docstrings in Google style.
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
# Not autodoc_preserve_defaults: signatures with the keywords of options are made, not written.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"geomerge {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True
