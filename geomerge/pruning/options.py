"""Options of sparsification, reconfiguration and inspection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from geomerge.data.batchnorm import BN
from geomerge.errors import OptionError
from geomerge.expert_options import ExpertOptions
from geomerge.io.precision import dtype_option
from geomerge.metrics.outputs import OUTPUTS
from geomerge.metrics.registry import MetricOptions, data_free_metrics
from geomerge.networks.autocast import precision_option
from geomerge.options import (
    FlatOptions,
    at_least,
    check_options,
    option,
    option_fields,
    piece,
    positive,
    recorded,
)
from geomerge.pruning.masks import SALIENCIES, parse_nm
from geomerge.pruning.plan_file import Wanted, parse_removals, removal_texts, wanted_units
from geomerge.pruning.removal import CHOICES

__all__ = [
    "FunctionOptions",
    "GoalOptions",
    "InspectOptions",
    "PruneWalkOptions",
    "RankingOptions",
    "ReconfigureOptions",
    "SparsifyFiles",
    "SparsifyOptions",
]

WALKS = ("prescribed", "pull")
POINTS = 32  # stored points of a walk
_GOALS = ("sparsity", "nm", "remove", "flops", "params")
_UNIT_GOALS = ("remove", "flops", "params")
_DATA = [one.name for one in option_fields(ExpertOptions)]


def _share(value: float) -> str | None:
    return None if 0 < value < 1 else "between 0 and 1, the share to remove"


def _up_to_one(value: float) -> str | None:
    return None if 0 <= value <= 1 else "between 0 and 1"


def _seed(value: int) -> str | None:
    return None if 0 <= value < 2**63 else "from 0 to 2^63 - 1"


@dataclass(frozen=True)
class GoalOptions:
    """Options of the goal, the weights or units to remove; exactly one is given."""

    sparsity: float | None = option(
        None, "share of the weights to remove, such as 0.95",
        group="what to remove", check=_share,
    )  # fmt: skip
    per_layer: bool = option(False, "equal share of every layer", group="what to remove")
    nm: str | None = option(
        None, "pattern such as 2:4: two of any four neighbouring weights stay",
        group="what to remove",
    )  # fmt: skip
    remove: Mapping[str, Wanted] | None = option(
        None, "LAYER:50 filters or neurons, LAYER:0.5 of them, or LAYER:1,2,5-9",
        group="what to remove", read=parse_removals, write=removal_texts,
    )  # fmt: skip
    flops: float | None = option(
        None, "share of the FLOPs to save by removing units of any layer",
        group="what to remove", check=_share,
    )  # fmt: skip
    params: float | None = option(
        None, "share of the parameters to save by removing units of any layer",
        group="what to remove", check=_share,
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Check the values and normalise ``remove``.

        Raises:
            OptionError: If a value is invalid.
        """
        check_options(self)
        if self.per_layer and self.sparsity is None:
            raise OptionError("`per_layer` says how `sparsity` is meant; give `sparsity` too")
        if self.nm is not None:
            parse_nm(self.nm)
        if self.remove is not None:
            object.__setattr__(self, "remove", wanted_units(self.remove, "`remove`"))

    @property
    def kind(self) -> str:
        """Name of the option of the goal.

        Raises:
            OptionError: If no goal or more than one is given.
        """
        given = [name for name in _GOALS if getattr(self, name) not in (None, {})]
        if len(given) != 1:
            names = " and ".join(f"`{name}`" for name in given) or "none of them"
            raise OptionError(
                f"expected one of `sparsity`, `nm`, `remove`, `flops` and `params`, got {names}; "
                "name the weights or units to remove"
            )
        return given[0]

    @property
    def removes_units(self) -> bool:
        """Whether whole units are removed instead of single weights."""
        return self.kind in _UNIT_GOALS


@dataclass(frozen=True)
class RankingOptions:
    """Options of the order in which weights or units are removed."""

    saliency: str = option(
        "obs", "saliency of single weights, the least of which are removed first",
        group="order of removal", choices=SALIENCIES,
    )  # fmt: skip
    choice: str = option(
        "greedy", "rule by which the next units are chosen",
        group="order of removal", choices=CHOICES, flag="choose",
    )  # fmt: skip
    budget: float | None = option(
        None, "bound on the rise of every class's mean KL, for the choice rates",
        group="order of removal", check=positive,
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            OptionError: If a value is invalid.
        """
        check_options(self)
        if self.budget is not None and self.choice != "rates":
            raise OptionError("`budget` bounds the rates of removal; set `choice` to rates too")


@dataclass(frozen=True)
class PruneMetricOptions(MetricOptions):
    """Choice of a metric for walks to sparse networks."""

    metric: str = option(
        "kronecker", "metric in which steps are taken", group="walk", choices=data_free_metrics
    )
    output: str = option(
        "tempered", "output whose change is measured", group="walk", choices=OUTPUTS
    )


@dataclass(frozen=True)
class FunctionOptions:
    """Options of the function to preserve: measurement of its change, and inputs."""

    geometry: MetricOptions = piece(PruneMetricOptions)
    bn: str | None = option(
        None, "treatment of BatchNorm statistics; default re-estimate", group="walk", choices=BN
    )
    inputs: int | None = option(
        None, "number of inputs; default all", group="data", check=at_least(10)
    )
    mix: float | None = option(
        None, "largest share of the second input in mixup; default 0.5 with under 10000 inputs",
        group="data", check=_up_to_one,
    )  # fmt: skip
    dtype: str | None = dtype_option()
    precision: str = precision_option("walk")

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            OptionError: If a value is invalid.
        """
        check_options(self)


@dataclass(frozen=True)
class PruneWalkOptions:
    """Options of a walk to a sparse network: stages and drift correction."""

    damping: float | None = option(
        None, "damping mu of the steps against the drift; default 0.1",
        group="walk", check=positive,
    )  # fmt: skip
    learning_rate: float | None = option(
        None, "learning rate of the first step; default 0.1, or less if the network needs it",
        group="walk", check=positive,
    )  # fmt: skip
    steps: int | None = option(
        None, "number of steps against the drift; default 3600", group="walk", check=at_least(1)
    )
    batch: int = option(128, "number of inputs of a step", group="walk", check=at_least(1))
    stages: int = option(
        30, "number of stages in which weights are removed", group="walk", check=at_least(1)
    )
    refresh: int = option(
        3, "number of stages between two measurements of the metric", group="walk",
        check=at_least(1),
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            OptionError: If a value is invalid.
        """
        check_options(self)


@dataclass(frozen=True)
class MoveWalkOptions(PruneWalkOptions):
    """Options of a walk from one configuration to the next."""

    stages: int = option(10, "number of stages of each move", group="walk", check=at_least(1))


@dataclass(frozen=True, init=False)
class SparsifyOptions(FlatOptions):
    """Options of a sparsification; None means an automatic choice.

    All options can be given as keywords: ``SparsifyOptions(sparsity=0.9, steps=100)``.

    Attributes:
        goal: Weights or units to remove.
        ranking: Order of the removal.
        function: Function to preserve.
        walking: Stages and steps.
        walk: Kind of walk: ``"prescribed"``, or ``"pull"``, the soft pull of arXiv 2012.09605.
        labels: Whether a last leg uses the task's labels.
        paths: Number of walks, of which the best is kept.
        points: Largest number of networks stored on a path, 8 at least; the usual 32 are fewer
            where they would be larger than 2 GB.
        seed: Seed of all random numbers.

    Example:
        >>> from geomerge import SparsifyOptions
        >>> options = SparsifyOptions(remove={"features.0": 50}, steps=100)
        >>> options.goal.kind, options.walking.steps
        ('remove', 100)
        >>> SparsifyOptions(sparsity=90)
        Traceback (most recent call last):
        geomerge.errors.OptionError: expected `sparsity` to be between 0 and 1, ...
    """

    elsewhere: ClassVar[Mapping[str, str]] = dict.fromkeys(
        _DATA, "gm.sparsify(network, options, {})"
    )
    goal: GoalOptions = piece(GoalOptions)
    ranking: RankingOptions = piece(RankingOptions)
    function: FunctionOptions = piece(FunctionOptions)
    walking: PruneWalkOptions = piece(PruneWalkOptions)
    walk: str = option(
        "prescribed", "kind of walk; pull is the soft pull of arXiv 2012.09605",
        group="walk", choices=WALKS,
    )  # fmt: skip
    labels: bool = option(False, "final leg that uses the task's labels", group="walk")
    paths: int = option(
        1, "number of walks, of which the shortest of the best is kept",
        group="walk", check=at_least(1),
    )  # fmt: skip
    points: int = option(
        POINTS, "largest number of networks stored on a path; the usual 32 are fewer beyond 2 GB",
        group="output", check=at_least(8),
    )  # fmt: skip
    seed: int = option(0, "seed of all random numbers", group="walk", check=_seed)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            OptionError: If a value is invalid.
        """
        check_options(self)
        if self.pulls and self.paths > 1:
            raise OptionError(
                "the soft pull has nothing to vary, so `paths` must be 1; leave it out"
            )

    @property
    def pulls(self) -> bool:
        """Whether the walk is the soft pull instead of the prescribed one."""
        return self.walk == "pull"

    def recorded(self) -> dict[str, Any]:
        """Return the options that determine the result, by flat name and as JSON values."""
        return recorded(self)


@dataclass(frozen=True, init=False)
class ReconfigureOptions(FlatOptions):
    """Options of a reconfiguration; None means an automatic choice.

    Attributes:
        choice: Rule for choosing units, where a plan gives numbers of units.
        function: Function to preserve.
        walking: Stages and steps of each move.
        points: Largest number of networks stored on each path, 8 at least; the usual 32 are
            fewer where they would be larger than 2 GB.
        seed: Seed of all random numbers.
    """

    elsewhere: ClassVar[Mapping[str, str]] = dict.fromkeys(
        _DATA, "gm.reconfigure(network, plan, options, {})"
    )
    choice: str = option(
        "greedy", "rule by which the next units are chosen",
        group="order of removal", choices=CHOICES, flag="choose",
    )  # fmt: skip
    function: FunctionOptions = piece(FunctionOptions)
    walking: PruneWalkOptions = piece(MoveWalkOptions)
    points: int = option(
        POINTS,
        "largest number of networks stored on each path; the usual 32 are fewer beyond 2 GB",
        group="output", check=at_least(8),
    )  # fmt: skip
    seed: int = option(0, "seed of all random numbers", group="walk", check=_seed)

    def recorded(self) -> dict[str, Any]:
        """Return the options that determine the result, by flat name and as JSON values.

        For compatibility with stored recipes this includes unused options of sparsifications.
        """
        return {**SparsifyOptions().recorded(), **recorded(self)}


@dataclass(frozen=True)
class SparsifyFiles:
    """Optional files of a sparsification."""

    shrink: bool = option(
        False, "additional file of the physically smaller network", group="output", recorded=False
    )
    pt: bool = option(False, "additional file sparse.pt", group="output", recorded=False)
    torch_prune: bool = option(
        False, "masks and weights in the form of torch.nn.utils.prune", group="output",
        recorded=False,
    )  # fmt: skip

    @property
    def names(self) -> list[str]:
        """Names of the files to write."""
        names = {
            "shrunk.safetensors": self.shrink,
            "sparse.pt": self.pt,
            "sparse-prune.pt": self.torch_prune,
        }
        return [name for name, wanted in names.items() if wanted]


@dataclass(frozen=True)
class InspectOptions:
    """Options of an inspection."""

    output: str = option(
        "tempered", "output whose change is measured", group="metric", choices=OUTPUTS
    )
    inputs: int = option(
        2000, "largest number of inputs; a quarter of them for each unit",
        group="metric", check=at_least(1),
    )  # fmt: skip
    seed: int = option(0, "seed of the choice of inputs", group="metric", check=_seed)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            OptionError: If a value is invalid.
        """
        check_options(self)
