"""``GeodesicMergePlugin``: the merge beside any strategy that takes plugins."""

from __future__ import annotations

from typing import Any

from avalanche.core import SupervisedPlugin

from geomerge.continual.report import MergeReport
from geomerge.continual.settings import ContinualOptions
from geomerge.strategies.merger import Merger, merge_settings

__all__ = ["GeodesicMergePlugin"]


class GeodesicMergePlugin(SupervisedPlugin):  # type: ignore[misc]
    """Merge what a strategy has trained into the network before it, after every experience.

    List it first: plugins before it would see the expert and not the merged network. Pass
    ``reset_optimizer_state=True`` to ``strategy.train``, or momentum goes on from the last expert.

    Args:
        settings: Of the merges.
        memory: As of :class:`~geomerge.strategies.geodesic_merge.GeodesicMerge`.
        manifold: As there.
        labels: As there.

    Raises:
        OptionError: In training, for an online stream.
    """

    def __init__(
        self,
        settings: ContinualOptions | None = None,
        *,
        memory: str | int | None = None,
        manifold: str | int | None = None,
        labels: bool | None = None,
    ) -> None:
        super().__init__()
        self.merger = Merger(merge_settings(settings, memory, manifold, labels))

    @property
    def merge_reports(self) -> list[MergeReport]:
        """One for each experience after the first."""
        return self.merger.reports

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Keep the network before."""
        self.merger.begin(strategy)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Merge."""
        self.merger.finish(strategy)
