"""Reports of finished runs: JSON, tables, pictures, cards and pages; no measurements."""

from geomerge.report.content import merge_report
from geomerge.report.curves import draw_curves
from geomerge.report.examples import write_examples
from geomerge.report.plane import draw_plane

__all__ = ["draw_curves", "draw_plane", "merge_report", "write_examples"]
