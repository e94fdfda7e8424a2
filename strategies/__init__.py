"""Continual learning inside Avalanche: the only package of geomerge that imports it.

::

    from geomerge.strategies import GeodesicMerge

Importing it takes about ten seconds: Avalanche brings much along.
"""

import warnings

with warnings.catch_warnings():  # what Avalanche imports objects to what it imports itself
    warnings.simplefilter("ignore")
    import avalanche.training  # noqa: F401

from geomerge.continual.report import MergeReport
from geomerge.continual.settings import ContinualOptions
from geomerge.renamed import old_names
from geomerge.strategies.checkpoint import maybe_load_checkpoint, save_checkpoint
from geomerge.strategies.csv_logger import MergeCSVLogger
from geomerge.strategies.geodesic_merge import GeodesicMerge
from geomerge.strategies.metrics import merge_metrics
from geomerge.strategies.plugin import GeodesicMergePlugin

__all__ = [
    "ContinualOptions",
    "GeodesicMerge",
    "GeodesicMergePlugin",
    "MergeCSVLogger",
    "MergeReport",
    "maybe_load_checkpoint",
    "merge_metrics",
    "save_checkpoint",
]

__getattr__ = old_names(__name__)
