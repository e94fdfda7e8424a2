"""Merge, sparsify and extend trained networks along paths that keep their function.

Names are imported when first used, so that ``import geomerge`` and the command line start fast.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from geomerge import renamed

if TYPE_CHECKING:
    from geomerge.data import Task as Task
    from geomerge.data import load_task as load_task
    from geomerge.errors import GeomergeError as GeomergeError
    from geomerge.expert import Expert as Expert
    from geomerge.io.checkpoint import Checkpoint as Checkpoint
    from geomerge.io.checkpoint import load_checkpoint as load_checkpoint
    from geomerge.io.checkpoint import save_checkpoint as save_checkpoint
    from geomerge.merging import Merge as Merge
    from geomerge.merging import MergeOptions as MergeOptions
    from geomerge.merging import merge as merge
    from geomerge.metrics import KroneckerMetric as KroneckerMetric
    from geomerge.metrics import Sketch as Sketch
    from geomerge.metrics import make_sketch as make_sketch
    from geomerge.monitor import progress as progress
    from geomerge.networks.network import Network as Network
    from geomerge.paths.path import WeightPath as WeightPath
    from geomerge.pretrained import from_pretrained as from_pretrained

__version__ = version("geomerge")

_HOME = {
    "Checkpoint": "io.checkpoint",
    "Expert": "expert",
    "GeomergeError": "errors",
    "KroneckerMetric": "metrics",
    "Merge": "merging",
    "MergeOptions": "merging",
    "Network": "networks.network",
    "Sketch": "metrics",
    "Task": "data",
    "WeightPath": "paths.path",
    "from_pretrained": "pretrained",
    "load_checkpoint": "io.checkpoint",
    "load_task": "data",
    "make_sketch": "metrics",
    "merge": "merging",
    "progress": "monitor",
    "save_checkpoint": "io.checkpoint",
}
__all__ = [*_HOME, "__version__"]

renamed.install()
_old_name = renamed.old_names("geomerge", stacklevel=3)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        return _old_name(name)
    return getattr(importlib.import_module(f"geomerge.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
