"""Merge, sparsify and extend trained networks along paths that keep their function.

Names are imported when first used, so that ``import geomerge`` and the command line start fast.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geomerge.checkpoint import Checkpoint as Checkpoint
    from geomerge.checkpoint import load_checkpoint as load_checkpoint
    from geomerge.checkpoint import save_checkpoint as save_checkpoint
    from geomerge.errors import GeomergeError as GeomergeError
    from geomerge.merging import Merge as Merge
    from geomerge.merging import MergeOptions as MergeOptions
    from geomerge.merging import merge as merge
    from geomerge.metric import KroneckerMetric as KroneckerMetric
    from geomerge.metric import Sketch as Sketch
    from geomerge.metric import make_sketch as make_sketch
    from geomerge.network import Network as Network
    from geomerge.path import WeightPath as WeightPath
    from geomerge.pretrained import from_pretrained as from_pretrained
    from geomerge.tasks import Task as Task
    from geomerge.tasks import load_task as load_task
    from geomerge.watching import progress as progress

__version__ = version("geomerge")

_HOME = {
    "Checkpoint": "checkpoint",
    "GeomergeError": "errors",
    "KroneckerMetric": "metric",
    "Merge": "merging",
    "MergeOptions": "merging",
    "Network": "network",
    "Sketch": "metric",
    "Task": "tasks",
    "WeightPath": "path",
    "from_pretrained": "pretrained",
    "load_checkpoint": "checkpoint",
    "load_task": "tasks",
    "make_sketch": "metric",
    "merge": "merging",
    "progress": "watching",
    "save_checkpoint": "checkpoint",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'geomerge' has no attribute {name!r}")
    return getattr(importlib.import_module(f"geomerge.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
