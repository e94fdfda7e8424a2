"""``GeodesicMergePlugin``: the merge as a plugin of any strategy of Avalanche."""

from __future__ import annotations

from typing import Any

from geomerge.continual.options import ContinualOptions
from geomerge.continual.report import MergeReport
from geomerge.strategies.avalanche import SupervisedPlugin
from geomerge.strategies.keywords import accept_options, take_options
from geomerge.strategies.merger import Merger

__all__ = ["GeodesicMergePlugin"]


class GeodesicMergePlugin(SupervisedPlugin):  # type: ignore[misc]
    """Merge the network that a strategy has trained into the one before, after every experience.

    List it first: plugins before it would see the expert and not the merged network. Pass
    ``reset_optimizer_state=True`` to ``strategy.train``, or the last expert's momentum goes on.

    Args:
        options: Options of the merges.
        memory: Memory, as of :class:`~geomerge.strategies.geodesic_merge.GeodesicMerge`.
        **keywords: Options of the merges by name.

    Raises:
        OptionError: For an option that is not known or out of range; in training, for an online
            stream without `merge_every`, or a memory that is too small.
    """

    @accept_options
    def __init__(
        self,
        options: ContinualOptions | None = None,
        *,
        memory: str | int | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__()
        self.merger = Merger(take_options(options, memory, keywords))
        if keywords:
            raise TypeError(f"GeodesicMergePlugin takes no {next(iter(keywords))!r}")

    @property
    def merge_reports(self) -> list[MergeReport]:
        """Report of each merge, one for every head of every experience after the first."""
        return self.merger.reports

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Copy the network before the experience."""
        self.merger.begin(strategy)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Merge."""
        self.merger.finish(strategy)
