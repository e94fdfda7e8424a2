"""Reports of progress -> bars for people, lines for programs."""

from geomerge.watching.bars import progress
from geomerge.watching.lines import log_lines, write_line
from geomerge.watching.sparkline import sparkline

__all__ = ["log_lines", "progress", "sparkline", "write_line"]
