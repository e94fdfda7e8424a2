"""What a merge would hold in memory and write to disk, from shapes."""

from __future__ import annotations

from geomerge.merging.fitting import data_bytes, factor_sizes, sketch_bytes
from geomerge.merging.options import MergeOptions
from geomerge.merging.plan import Plan
from geomerge.merging.sides import Side, Sides
from geomerge.metric.factor import RANK, WHOLE

__all__ = ["estimate_memory"]

_WALK_COPIES = 7  # of the weights, beside metric and activations: benchmarks/memory.py
_NUMBER = 4  # bytes


def estimate_memory(plan: Plan, sides: Sides, options: MergeOptions) -> dict[str, int]:
    """Return bytes by what they are for; activations of a batch come on top.

    Args:
        plan: What the merge will do.
        sides: The networks.
        options: How many points the path keeps.
    """
    weights = _NUMBER * sides.network.n
    tried = max(len(stage.candidates) for stage in plan.stages)
    return {
        "weights": 2 * weights * len(sides.all),  # as they came, and as vectors
        "data": data_bytes(sides),
        "metric": _metric_bytes(plan, sides, options),
        "walk": _WALK_COPIES * weights,
        "path_on_disk": (options.points + 2) * weights,
        "disk_while_walking": (2 * options.points + (tried - 1) * options.points + 2) * weights,
    }


def _metric_bytes(plan: Plan, sides: Sides, options: MergeOptions) -> int:
    if options.metric != "kronecker":  # the others keep activations or few gradients
        return 0
    stored = sketch_bytes(side for stage in plan.stages for side in stage.kept)
    measured = [side for side in sides if side.manifold is not None]
    return stored + max((_factor_bytes(side) for side in measured), default=0)


def _factor_bytes(side: Side) -> int:
    """Return the bytes of a Kronecker metric's eigenvectors, measured on a side's inputs."""
    return _NUMBER * sum(d * (d if d <= WHOLE else RANK) for d in factor_sizes(side))
