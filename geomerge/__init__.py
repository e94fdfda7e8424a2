"""Merging, sparsification and extension of trained networks, along paths that preserve functions.

Names are imported when first used, so that ``import geomerge`` and the command line start fast.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from geomerge import renamed

if TYPE_CHECKING:
    from geomerge.alignment import align as align
    from geomerge.comparison import CompareOptions as CompareOptions
    from geomerge.comparison import Comparison as Comparison
    from geomerge.comparison.compare import compare as compare
    from geomerge.data import Task as Task
    from geomerge.data import load_task as load_task
    from geomerge.errors import AssumptionWarning as AssumptionWarning
    from geomerge.errors import GeomergeError as GeomergeError
    from geomerge.expert import Expert as Expert
    from geomerge.io.checkpoint import Checkpoint as Checkpoint
    from geomerge.io.checkpoint import load_checkpoint as load_checkpoint
    from geomerge.io.checkpoint import save_checkpoint as save_checkpoint
    from geomerge.merging import MergeOptions as MergeOptions
    from geomerge.merging import MergeResult as MergeResult
    from geomerge.merging import check as check
    from geomerge.merging import merge as merge
    from geomerge.metrics import KroneckerMetric as KroneckerMetric
    from geomerge.metrics import Metric as Metric
    from geomerge.metrics import Sketch as Sketch
    from geomerge.metrics import load_sketch as load_sketch
    from geomerge.metrics import make_sketch as make_sketch
    from geomerge.metrics import measure_metric as measure_metric
    from geomerge.metrics import save_sketch as save_sketch
    from geomerge.monitor import progress as progress
    from geomerge.networks.network import Network as Network
    from geomerge.paths.path import WeightPath as WeightPath
    from geomerge.pretrained import from_pretrained as from_pretrained
    from geomerge.pruning.inspect import inspect as inspect
    from geomerge.pruning.options import ReconfigureOptions as ReconfigureOptions
    from geomerge.pruning.options import SparsifyOptions as SparsifyOptions
    from geomerge.pruning.plan_file import PlanStep as PlanStep
    from geomerge.pruning.reconfigure import reconfigure as reconfigure
    from geomerge.pruning.sparsify import sparsify as sparsify
    from geomerge.runs.run import Run as Run
    from geomerge.runs.run import open_run as open_run
    from geomerge.steps import trust_region_step as trust_region_step
    from geomerge.walks.walk import FunctionWalkOptions as FunctionWalkOptions
    from geomerge.walks.walk import WeightWalkOptions as WeightWalkOptions
    from geomerge.walks.walk import walk_toward_function as walk_toward_function
    from geomerge.walks.walk import walk_toward_weights as walk_toward_weights

__version__ = version("geomerge")

_HOME = {
    # networks and data, as a user brings them
    "Checkpoint": "io.checkpoint",
    "Expert": "expert",
    "Network": "networks.network",
    "Task": "data",
    "load_checkpoint": "io.checkpoint",
    "load_task": "data",
    "save_checkpoint": "io.checkpoint",
    # recipes
    "align": "alignment",
    "check": "merging",
    "compare": "comparison.compare",
    "inspect": "pruning.inspect",
    "merge": "merging",
    "reconfigure": "pruning.reconfigure",
    "sparsify": "pruning.sparsify",
    # their options and results
    "CompareOptions": "comparison",
    "Comparison": "comparison",
    "MergeOptions": "merging",
    "MergeResult": "merging",
    "PlanStep": "pruning.plan_file",
    "ReconfigureOptions": "pruning.options",
    "SparsifyOptions": "pruning.options",
    # the geometry
    "FunctionWalkOptions": "walks.walk",
    "KroneckerMetric": "metrics",
    "Metric": "metrics",
    "Sketch": "metrics",
    "WeightPath": "paths.path",
    "WeightWalkOptions": "walks.walk",
    "load_sketch": "metrics",
    "make_sketch": "metrics",
    "measure_metric": "metrics",
    "save_sketch": "metrics",
    "trust_region_step": "steps",
    "walk_toward_function": "walks.walk",
    "walk_toward_weights": "walks.walk",
    # runs on disk, and what happens in them
    "AssumptionWarning": "errors",
    "GeomergeError": "errors",
    "Run": "runs.run",
    "from_pretrained": "pretrained",
    "open_run": "runs.run",
    "progress": "monitor",
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
