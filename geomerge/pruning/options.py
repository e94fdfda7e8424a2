"""What a sparsification can be told, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from geomerge.data import split_normalisations
from geomerge.data.batchnorm import BN
from geomerge.errors import OptionError
from geomerge.metrics.outputs import OUTPUTS
from geomerge.options import check_known, check_positive, recorded
from geomerge.pruning.masks import SALIENCIES, parse_nm
from geomerge.pruning.plan import parse_removals
from geomerge.pruning.removal import CHOICES

__all__ = ["WALKS", "SparsifyOptions"]

WALKS = ("prescribed", "pull")
METRICS = ("kronecker", "euclidean")
_GOALS = ("sparsity", "nm", "remove", "flops", "params")


@dataclass(frozen=True)
class SparsifyOptions:
    """Options of a sparsification; None lets geomerge choose.

    Attributes:
        manifold: Task on whose inputs the function is kept; None takes the checkpoint's own.
        sparsity: Share of the prunable weights that is zero at the end.
        per_layer: Whether every layer gets that share; otherwise the network as a whole.
        nm: ``"2:4"``: two of four neighbouring weights stay.
        remove: ``"features.0:50"``, ``"features.0:0.5"`` or ``"features.0:1,2,5-9"``: units.
        flops: Share of the FLOPs that units are removed for, over the whole network.
        params: The same for the parameters.
        walk: ``"prescribed"``, or ``"pull"``: the soft pull of arXiv 2012.09605.
        metric: ``"kronecker"`` or ``"euclidean"``.
        output: One of :data:`~geomerge.metrics.outputs.OUTPUTS`, what the metric measures.
        saliency: ``"obs"``, ``"obd"`` or ``"magnitude"``: which weights go first.
        choice: ``"greedy"``, ``"rates"`` or ``"magnitude"``: which units go first.
        budget: By how much the mean KL to the dense network may rise for any class; with
            ``choice="rates"``.
        bn: ``"keep"`` or ``"re-estimate"``, what happens to running statistics.
        damping: mu of the steps against the drift.
        learning_rate: Of the first of them.
        steps: How many of them.
        batch: Inputs of each.
        stages: In how many the plane is reached.
        refresh: Stages between two measurements of the metric.
        inputs: Use only so many of the manifold's inputs.
        mix: Largest share of a second input in what the function is kept on, 0 for none; None
            mixes where there are fewer than 10 000 inputs.
        labels: Whether a last leg may use labels.
        paths: How many walks; the shortest of the best is kept.
        points: Most networks stored on a path.
        seed: Of everything drawn.
        arch: Architecture, where the weights do not say.
        normalisation: ``"TASK=MEAN/STD"``, instead of the usual or recorded ones.
        data_root: Folder of the named data sets.
        download: Whether torchvision may fetch them.
        device: Where to compute.
    """

    manifold: str | None = None
    sparsity: float | None = None
    per_layer: bool = False
    nm: str | None = None
    remove: tuple[str, ...] = ()
    flops: float | None = None
    params: float | None = None
    walk: str = "prescribed"
    metric: str = "kronecker"
    output: str = "tempered"
    saliency: str = "obs"
    choice: str = "greedy"
    budget: float | None = None
    bn: str | None = None
    damping: float | None = None
    learning_rate: float | None = None
    steps: int | None = None
    batch: int = 128
    stages: int = 30
    refresh: int = 3
    inputs: int | None = None
    mix: float | None = None
    labels: bool = False
    paths: int = 1
    points: int = 32
    seed: int = 0
    arch: str | None = None
    normalisation: tuple[str, ...] = ()
    data_root: str | None = None
    download: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Refuse values that cannot be used.

        Raises:
            OptionError: With the value, what was expected and what to do.
        """
        for what, value, known in (
            ("walk", self.walk, WALKS),
            ("metric", self.metric, METRICS),
            ("output", self.output, OUTPUTS),
            ("saliency", self.saliency, SALIENCIES),
            ("choice", self.choice, CHOICES),
            ("bn", self.bn, BN),
        ):
            check_known(what, value, known)
        for flag in ("sparsity", "flops", "params"):
            share = getattr(self, flag)
            if share is not None and not 0 < share < 1:
                raise OptionError(
                    f"expected --{flag} between 0 and 1, the share that goes, got {share}; give "
                    "0.5 for a half"
                )
        check_positive("damping", self.damping)
        check_positive("learning-rate", self.learning_rate)
        check_positive("budget", self.budget)
        for flag, least in (
            ("steps", 1), ("stages", 1), ("batch", 1), ("paths", 1), ("refresh", 1), ("inputs", 10),
            ("points", 8),
        ):  # fmt: skip
            number = getattr(self, flag)
            if number is not None and number < least:
                raise OptionError(f"expected --{flag} of {least} or more, got {number}; correct it")
        if self.mix is not None and not 0 <= self.mix <= 1:
            raise OptionError(f"expected --mix between 0 and 1, got {self.mix}; give 0.5 or 0")
        if self.walk == "pull" and self.paths > 1:
            raise OptionError("--walk pull has nothing to vary, so --paths must be 1; leave it out")
        if not 0 <= self.seed < 2**63:
            raise OptionError(f"expected --seed from 0 to 2^63 - 1, got {self.seed}; give another")
        if self.per_layer and self.sparsity is None:
            raise OptionError("--per-layer says how --sparsity is meant; give --sparsity too")
        if self.budget is not None and self.choice != "rates":
            raise OptionError("--budget bounds the rates of removal; give --choose rates too")
        if self.nm is not None:
            parse_nm(self.nm)
        parse_removals(self.remove)
        split_normalisations(self.normalisation)

    def goal(self) -> str:
        """Return which option says what goes.

        Raises:
            OptionError: If none or several do.
        """
        given = [name for name in _GOALS if getattr(self, name) not in (None, ())]
        if len(given) != 1:
            said = " and ".join(f"--{name}" for name in given) or "none of them"
            raise OptionError(
                f"expected one of --sparsity, --nm, --remove, --flops and --params, got {said}; "
                "say what shall go"
            )
        return given[0]

    @property
    def structured(self) -> bool:
        """Whether whole units go."""
        return self.goal() in ("remove", "flops", "params")

    def recipe(self, digests: dict[str, str]) -> dict[str, Any]:
        """Return all that decides the result, as JSON keeps it.

        Args:
            digests: SHA-256 of each input file.
        """
        return {"sparsify": recorded(self), "inputs": digests}
