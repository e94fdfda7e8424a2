"""Memory check of an experience before its training: least bytes against the limit."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from geomerge.continual.feature_memory import least_feature_bytes
from geomerge.continual.memory import Experience, remember
from geomerge.continual.memory_limit import least_bytes, megabytes
from geomerge.continual.options import ContinualOptions
from geomerge.data import as_they_are
from geomerge.errors import OptionError
from geomerge.networks.wrappers import plain_module
from geomerge.options import replace_options
from geomerge.strategies.experience import classes_of
from geomerge.strategies.feature_merger import FeatureMerger
from geomerge.strategies.head_networks import HeadNetworks

__all__ = ["PROBED", "MemoryCheck"]

PROBED = 200  # inputs of an experience that tell how large its memory is at least


class MemoryCheck:
    """Check of a `memory_mb` that was given; the default is far above what any task needs.

    Args:
        options: Options of the merges.
    """

    def __init__(self, options: ContinualOptions) -> None:
        self._options = options
        self._least: dict[str, int] = {}  # bytes of a task's memory, of each kind

    def before_training(
        self,
        strategy: Any,
        x: Tensor,  # (B, ...)
        heads: list[int | None],
        kind: str,
        tasks: int,
        features: FeatureMerger,
    ) -> None:
        """Refuse a limit that the memory cannot fit into once an experience is learned.

        Args:
            strategy: Strategy, with the experience.
            x: Some inputs of the experience.
            heads: Its heads, task labels; None for a model with one.
            kind: Kind of the head, one of :data:`~geomerge.continual.options.HEADS`; what `"auto"`
                needs is not known before the first experience is learned.
            tasks: Number of tasks once the experience is learned.
            features: Merges in feature space.

        Raises:
            OptionError: With the number of megabytes that are needed.
        """
        given = self._options.memory.memory_mb
        if given is None:
            return
        sizes: list[tuple[int, str]] = []
        if kind != "trained":
            try:
                sizes.append(_of_classes(strategy, x, heads, features))
            except OptionError:  # no classifier that could be written
                if kind == "discriminant":
                    raise
        if kind != "discriminant":
            sizes.append(self._of_tasks(strategy, x, heads[0], tasks))
        size, what = min(sizes)
        if size > given * 1e6:
            raise OptionError(
                f"the memory of {what} needs {megabytes(size)} at least, expected at most "
                f"`memory_mb` {given:g}; raise `memory_mb`"
            )

    def _of_tasks(self, strategy: Any, x: Tensor, head: int | None, tasks: int) -> tuple[int, str]:
        """Return the bytes that tasks with trained heads need, and what needs them."""
        model = plain_module(strategy.model)
        if not self._least:
            networks = HeadNetworks(model, strategy.device)
            network = networks(head)
            few = min(self._options.memory.pseudo_inputs, PROBED)
            task = Experience(as_they_are(x, strategy.device), "task", head)
            options = replace_options(self._options, pseudo_inputs=few)
            memory = [remember(network, network.initial, task, options)]
            self._least = least_bytes(memory, networks, network.initial)
        shared = 0 if self._options.tells_tasks_apart else self._least.get("metric", 0)
        size = shared + tasks * (sum(self._least.values()) - shared)
        return size, f"{tasks} task{'s' if tasks > 1 else ''}"


def _of_classes(
    strategy: Any, x: Tensor, heads: list[int | None], features: FeatureMerger
) -> tuple[int, str]:
    """Return the bytes that classes with statistics need, and what needs them."""
    model, memory = plain_module(strategy.model), features.memory
    found = features.classifier(model, x[:2].to(strategy.device), heads[0])
    layer = model.get_submodule(found.linear)
    assert isinstance(layer, nn.Linear), "found as one"
    own = classes_of(strategy.experience, heads)
    known = own if memory is None else own | set(memory.statistics.keys)
    return least_feature_bytes(len(known), layer.in_features), f"{len(known)} classes"
