"""Progress of walks, as bars for people and as lines for programs."""

from geomerge.monitor.bars import progress, sparkline
from geomerge.monitor.lines import log_lines, write_line

__all__ = ["log_lines", "progress", "sparkline", "write_line"]
