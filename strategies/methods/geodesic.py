"""geomerge's own row: an expert of each experience, merged into the network before."""

from __future__ import annotations

from typing import Any

from geomerge.continual.options import ContinualOptions
from geomerge.errors import OptionError
from geomerge.options import recorded
from geomerge.strategies.learner import KeptMemory, Learner, make_strategy
from geomerge.strategies.options import StreamOptions
from geomerge.strategies.registry import StreamCase, stream_method

__all__ = ["expert_epochs", "geodesic", "merge_options"]


def expert_epochs(options: StreamOptions) -> int:
    """Return the epochs of each expert; those of the walk are the others.

    Raises:
        OptionError: If none are left for one of them.
    """
    epochs = options.training.epochs
    walk = 1 if options.walk.walk_epochs is None else options.walk.walk_epochs
    least = 0 if options.walk.labels else 1  # with labels the walk can do without an expert
    if walk < 1 or epochs - walk < least:
        raise OptionError(
            f"`epochs` {epochs} are the expert's and the walk's together, and {walk} are the "
            "walk's; give more `epochs`, fewer `walk_epochs`, `labels` (then no expert is needed) "
            "or `skip` geodesic"
        )
    return epochs - walk


def merge_options(options: StreamOptions) -> ContinualOptions:
    """Return the options of the merge after each experience.

    Raises:
        OptionError: If no epochs are left for the expert or for the walk.
    """
    walk, usual = options.walk, ContinualOptions().walk
    features = {
        name: value
        for name in ("moving", "old_weight", "views")
        if (value := getattr(walk, name)) is not None
    }
    return ContinualOptions(
        epochs=options.training.epochs - expert_epochs(options),
        batch=options.training.batch,
        metric=walk.metric,
        labels=walk.labels,
        examples=walk.examples,
        memory_mb=walk.memory_mb,
        seed=options.seed,
        damping=usual.damping if walk.damping is None else walk.damping,
        learning_rate=usual.learning_rate if walk.walk_rate is None else walk.walk_rate,
        budget=walk.budget,
        **features,
    )


def _settings(options: StreamOptions) -> dict[str, Any]:
    return recorded(merge_options(options))


@stream_method(
    "geodesic",
    "geomerge",
    "an expert of each experience, then a walk that keeps what was learned before",
    settings=_settings,
)
def geodesic(case: StreamCase) -> Learner:
    """Return geomerge's own strategy."""
    from geomerge.strategies.geodesic_merge import GeodesicMerge

    options, epochs = merge_options(case.options), expert_epochs(case.options)

    def trained(strategy: Any) -> int:
        """Return an expert's epochs: all of them in the first experience, or where none walks."""
        first = strategy.clock.train_exp_counter == 0
        return case.training.epochs if first or strategy.features is not None else epochs

    strategy, pace = make_strategy(
        case.training,
        GeodesicMerge,
        options=options,
        epochs=trained,
    )

    def kept() -> KeptMemory:
        return KeptMemory(int(strategy.memory_bytes), options.memory.examples * len(pace.steps))

    def more_passes() -> float:
        walks = sum(r.passes * r.used["inputs"] for r in strategy.merge_reports)
        # A sketch takes one pass forwards and two backwards of each of its inputs.
        sketched = 2 * options.memory.sketch_inputs if options.measures_tasks else 0
        return float(walks + sketched * len(pace.steps))

    plural = "s" if epochs > 1 else ""
    about = f"an expert of {epochs} epoch{plural}, then " if epochs else ""
    about += f"a walk of {options.walk.epochs:g}"
    about += " with labels" if options.walk.labels else " toward its function"
    return Learner(strategy, pace, about, kept, more_passes)
