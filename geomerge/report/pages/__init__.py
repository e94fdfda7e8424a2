"""Pages of runs: one self-contained HTML file each, made of the report alone."""

from geomerge.report.pages.compare import compare_page
from geomerge.report.pages.merge import merge_page
from geomerge.report.pages.reconfigure import reconfigure_page
from geomerge.report.pages.render import render
from geomerge.report.pages.sparsify import sparsify_page
from geomerge.report.pages.stream import stream_page

__all__ = [
    "compare_page",
    "merge_page",
    "reconfigure_page",
    "render",
    "sparsify_page",
    "stream_page",
]
