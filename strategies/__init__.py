"""Continual learning inside Avalanche: the only package of geomerge that imports it.

::

    from geomerge.strategies import GeodesicMerge

Names are imported when first used. The first of those that need Avalanche takes about ten seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from geomerge.renamed import old_names

if TYPE_CHECKING:
    from geomerge.continual.options import ContinualOptions as ContinualOptions
    from geomerge.continual.report import MergeReport as MergeReport
    from geomerge.strategies.csv_logger import MergeCSVLogger as MergeCSVLogger
    from geomerge.strategies.geodesic_merge import GeodesicMerge as GeodesicMerge
    from geomerge.strategies.metrics import merge_metrics as merge_metrics
    from geomerge.strategies.options import StreamOptions as StreamOptions
    from geomerge.strategies.plugin import GeodesicMergePlugin as GeodesicMergePlugin
    from geomerge.strategies.quarter_turns import QuarterTurns as QuarterTurns
    from geomerge.strategies.registry import STREAM_METHODS as STREAM_METHODS
    from geomerge.strategies.registry import stream_method as stream_method
    from geomerge.strategies.result import StreamResult as StreamResult
    from geomerge.strategies.strategy_file import maybe_load_checkpoint as maybe_load_checkpoint
    from geomerge.strategies.strategy_file import save_checkpoint as save_checkpoint
    from geomerge.strategies.strategy_file import save_strategy as save_strategy
    from geomerge.strategies.table import stream as stream

_HOME = {
    # the strategy ------------------------------------------------------------------------------
    "ContinualOptions": "continual.options",
    "GeodesicMerge": "strategies.geodesic_merge",
    "GeodesicMergePlugin": "strategies.plugin",
    "MergeCSVLogger": "strategies.csv_logger",
    "MergeReport": "continual.report",
    "QuarterTurns": "strategies.quarter_turns",
    "merge_metrics": "strategies.metrics",
    # its files ---------------------------------------------------------------------------------
    "maybe_load_checkpoint": "strategies.strategy_file",
    "save_checkpoint": "strategies.strategy_file",
    "save_strategy": "strategies.strategy_file",
    # streams with baselines --------------------------------------------------------------------
    "STREAM_METHODS": "strategies.registry",
    "StreamOptions": "strategies.options",
    "StreamResult": "strategies.result",
    "stream": "strategies.table",
    "stream_method": "strategies.registry",
}
__all__ = list(_HOME)

_old_name = old_names(__name__, stacklevel=3)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        return _old_name(name)
    return getattr(importlib.import_module(f"geomerge.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
