"""Memory that a process holds before a merge walks, and that of libraries it loads later."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import torch

from geomerge.io import paged
from geomerge.io.files import write_bytes
from geomerge.processes import first_text, team, writes

__all__ = ["base_bytes", "base_of_run", "keep_base"]

# Bytes of the libraries that a merge and its report load after the plan, by the module from which
# they are known to be there: benchmarks/memory_limit.py.
_LATER = {
    "torch._dynamo": 150_000_000,
    "matplotlib": 35_000_000,
    "scipy.stats": 25_000_000,
    "vl_convert": 150_000_000,
}
_BUFFERS = 75_000_000  # of passes, decompositions and the allocator
_ROUNDED = 50_000_000  # so that the plans of two runs are the same
_ELSEWHERE = 600_000_000  # Python and torch where the system does not tell
_FILE = "memory.txt"


def base_bytes() -> int:
    """Return the bytes that the process holds now, and of the libraries that it has yet to load.

    Builds of torch differ by hundreds of megabytes, so that they are measured, not assumed.
    """
    paged.give_back()
    paged.trim()
    later = sum(
        size
        for name, size in _LATER.items()
        if name not in sys.modules and find_spec(name.partition(".")[0]) is not None
    )
    return -(-(_resident() + later + _BUFFERS) // _ROUNDED) * _ROUNDED


def base_of_run(work: Path | None) -> int:
    """Return :func:`base_bytes` of the process with the most, as a run had it when it began.

    The size decides passes and forms, and with them the bits of a merge that is resumed.

    Args:
        work: Folder of the run's state, where the size is stored; None if it cannot be resumed.
    """
    own, mates = base_bytes(), team()
    if mates is not None:
        own = int(mates.all_rows(torch.tensor([own])).max())
    file = None if work is None else work / _FILE
    return int(first_text(file.read_text() if file is not None and file.exists() else str(own)))


def keep_base(work: Path | None, base: int) -> None:
    """Store the size of a run whose plan is made, for :func:`base_of_run` when it is resumed.

    Args:
        work: Folder of the run's state; None stores nothing.
        base: Size by which it is planned.
    """
    if work is not None and writes():
        work.mkdir(parents=True, exist_ok=True)
        write_bytes(work / _FILE, str(base).encode())


def _resident() -> int:
    """Return the bytes of memory that the process holds, or has held at most where only these."""
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    try:
        import resource
    except ImportError:  # on Windows
        return _ELSEWHERE
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS
