"""Everything measured -> JSON and pictures."""

from geomerge.report.content import merge_report
from geomerge.report.curves import draw_curves

__all__ = ["draw_curves", "merge_report"]
