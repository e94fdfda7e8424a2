"""Progress of walks, as bars in a terminal or a notebook and as JSON lines."""

from geomerge.monitor.bars import progress, sparkline
from geomerge.monitor.lines import log_lines, write_line

__all__ = ["log_lines", "progress", "sparkline", "write_line"]
