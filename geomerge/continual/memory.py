"""Memory of learned tasks: a sketch, moments of the inputs, and the old outputs.

No inputs are stored unless they are asked for, and labels never. All of it is tensors of known
size, most of them in half precision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from geomerge.continual.grown_heads import Shapes
from geomerge.continual.options import ContinualOptions
from geomerge.continual.pseudo_inputs import InputMoments, measure_moments
from geomerge.data import Inputs, as_they_are
from geomerge.errors import OptionError
from geomerge.metrics import KroneckerMetric
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.metrics.kronecker.factor import Factor
from geomerge.networks.batches import Batch, batch_size, concat, leaves, to_device
from geomerge.networks.network import Network
from geomerge.walks.objectives import log_probabilities

__all__ = [
    "LARGEST_GAP",
    "UNSEEN",
    "Experience",
    "NetworkOf",
    "TaskMemory",
    "answered",
    "answers",
    "bytes_by_kind",
    "check_continuous",
    "in_precision",
    "pseudo_input_gap",
    "remember",
]

NetworkOf = Callable[[int | None], Network]  # the network as a function of the inputs of a head

LARGEST_GAP = 0.05  # largest gap of features on pseudo-inputs for a head that is rehearsed on them
UNSEEN = -30.0  # log-probability of classes that are masked, or came later
_BATCH = 500
_DRAWN = 1000
_BEYOND_CHANCE = 3.0
_MOMENTS = 5000  # inputs on which moments are measured


@dataclass(frozen=True)
class Experience:
    """A task as it comes along a stream.

    Attributes:
        inputs: Inputs of the task.
        name: Name for reports, such as ``"task 3"``.
        head: Task label of a network with a head for each task, else None.
        labels: Labels, shape (N,); needed by a walk with labels only.
    """

    inputs: Inputs
    name: str = "new"
    head: int | None = None
    labels: Tensor | None = None


@dataclass(frozen=True)
class TaskMemory:
    """Memory of a task.

    Attributes:
        name: Name for reports.
        head: Task label of a network with a head for each task, else None.
        shapes: Shapes of the network's tensors when the task was learned.
        origin: Weights from which a budget measures the drift, shape (n,); empty without a budget
            and where the sketch went into another.
        sketch: Metric of the task, of which :meth:`stored` has the eigenvectors in half precision;
            None where it was merged into that of an earlier task, or none is needed.
        tasks: Number of tasks whose functions the sketch measures.
        moments: Moments of the inputs; None where none are stored.
        examples: Stored inputs, shape (k, ...).
        seed: Seed of the pseudo-inputs.
        targets: Log-probabilities on pseudo-inputs and stored inputs, in half precision, (N, m).
        kept: Shares of the sketch's trace and of the inputs' variance that are still stored.
    """

    name: str
    head: int | None
    shapes: Shapes
    origin: Tensor
    sketch: KroneckerMetric | None
    tasks: int
    moments: InputMoments | None
    examples: Batch
    seed: int
    targets: Tensor
    kept: dict[str, float]

    def inputs(self) -> Batch:  # (N, ...)
        """Return the inputs that targets belong to: pseudo-inputs, drawn again, and stored ones."""
        count = len(self.targets) - batch_size(self.examples)
        if self.moments is None or not count:
            return self.examples
        return concat([self.moments.draw(count, self.seed), self.examples])

    def stored(self) -> TaskMemory:
        """Return the memory with the sketch in half precision.

        A new sketch has no eigenvectors yet, which its sum with another does not need.
        """
        if self.sketch is None:
            return self
        return replace(self, sketch=in_precision(self.sketch, torch.float16))

    @property
    def metric(self) -> KroneckerMetric | None:
        """The sketch in single precision."""
        return None if self.sketch is None else in_precision(self.sketch, torch.float32)

    @property
    def nbytes(self) -> int:
        """Number of bytes of everything stored."""
        return sum(self.by_kind.values())

    @property
    def by_kind(self) -> dict[str, int]:
        """Number of bytes stored of each kind."""
        return {
            "metric": 0 if self.sketch is None else self.sketch.nbytes,
            "moments": 0 if self.moments is None else self.moments.nbytes,
            "outputs": self.targets.nbytes,
            "weights": self.origin.nbytes,
            "examples": sum(leaf.nbytes for leaf in leaves(self.examples)),
        }


def bytes_by_kind(memory: Iterable[TaskMemory]) -> dict[str, int]:
    """Return the number of bytes of each kind that is stored of all tasks."""
    total: Counter[str] = Counter()
    for task in memory:
        total.update(task.by_kind)
    return {kind: size for kind, size in total.items() if size}


def in_precision(metric: KroneckerMetric, dtype: torch.dtype) -> KroneckerMetric:
    """Return a metric with eigenvectors of another precision; eigenvalues stay as they are.

    Entries of eigenvectors are at most one, and half precision rounds them by less than a
    thousandth.

    Args:
        metric: Metric.
        dtype: Type of the eigenvectors.
    """

    def to(factor: Factor) -> Factor:
        if factor.dtype == dtype:
            return factor
        return Factor(factor.vectors.to(dtype), factor.values, factor.tail)

    layers = (
        replace(layer, inputs=to(layer.inputs), outputs=to(layer.outputs))
        for layer in metric.layers
    )
    return replace(metric, layers=tuple(layers))


def answers(
    network: Network,
    w: Tensor,  # (n,)
    inputs: Inputs,
    batch: int = 1000,
) -> Tensor:  # (N, m)
    """Return log-probabilities that fit half precision: those of masked classes are clamped.

    Args:
        network: Network.
        w: Weights of the network.
        inputs: Inputs to answer.
        batch: Number of inputs per pass.
    """
    return log_probabilities(network, w, inputs, batch).clamp(min=UNSEEN)


def check_continuous(inputs: Inputs) -> None:
    """Refuse inputs that pseudo-inputs cannot be drawn for: integers, or several tensors.

    Args:
        inputs: Some inputs of an experience.

    Raises:
        OptionError: If they have no moments.
    """
    if not inputs.continuous or not isinstance(inputs.raw, Tensor):
        raise OptionError(
            "pseudo-inputs are drawn from the moments of inputs, and these are "
            f"{'integers' if isinstance(inputs.raw, Tensor) else 'several tensors'}; give "
            "`pseudo_inputs` as 0 and a number of `examples`"
        )


def remember(
    network: Network,
    w: Tensor,  # (n,)
    experience: Experience,
    options: ContinualOptions,
    seed: int | None = None,
) -> TaskMemory:
    """Return the memory of a task that was learned.

    Args:
        network: Network as a function of this task's inputs.
        w: Weights with the task learned.
        experience: The task; its labels are not used.
        options: Options of the amount that is stored.
        seed: Seed of samples and pseudo-inputs; None takes that of the options.

    Raises:
        OptionError: If pseudo-inputs are wanted of inputs that have no moments.
    """
    seed = options.seed if seed is None else seed
    inputs, keep = experience.inputs, options.memory
    sketch, moments, kept = None, None, {}
    if options.measures_tasks:
        sample = inputs.sample(keep.sketch_inputs, seed)
        sketch = estimate_kronecker(network, w, sample.equal_batches(_BATCH), options.output, seed)
        kept["sketch"] = 1.0
    if keep.pseudo_inputs:
        check_continuous(inputs)
        moments = _moments(network, w, inputs, options, seed)
        kept["moments"] = moments.kept
    examples = to_device(inputs.sample(keep.examples, seed + 1).batch(slice(None)), "cpu")
    unanswered = torch.empty(keep.pseudo_inputs + batch_size(examples), 0)
    origin = w.cpu() if options.budget is not None else torch.empty(0)
    memory = TaskMemory(
        experience.name, experience.head, dict(network.shapes), origin, sketch, 1, moments,
        examples, seed, unanswered, kept,
    )  # fmt: skip
    return answered(memory, network, w)


def pseudo_input_gap(
    network: Network,
    features: Network,
    experience: Experience,
    options: ContinualOptions,
) -> float | None:
    """Return the distance of the mean features on pseudo-inputs from those on inputs.

    Perceptrons have a gap under 0.03 on MNIST and Fashion-MNIST; networks of convolutions have one
    of 0.09 to 0.15 on MNIST and of 0.11 to 0.16 on CIFAR-10, where rehearsing on pseudo-inputs
    harms. A gap that chance explains is 0.

    Args:
        network: Network that has learned the experience, at its own weights.
        features: The same up to the inputs of its classifier.
        experience: Inputs.
        options: Options of moments and pseudo-inputs.

    Returns:
        The distance in units of the features' root mean square deviation; None where no
        pseudo-inputs are wanted.
    """
    inputs, keep = experience.inputs, options.memory
    if not keep.pseudo_inputs or not inputs.continuous or not isinstance(inputs.raw, Tensor):
        return None
    moments = _moments(network, network.initial, inputs, options, options.seed)
    drawn = as_they_are(moments.draw(_DRAWN, options.seed), network.device)
    seen = inputs.sample(_DRAWN, options.seed)
    one, two = (features.all_logits(features.initial, x.batches(_BATCH)) for x in (seen, drawn))
    spread = (one - one.mean(dim=0)).square().sum(dim=1).mean().sqrt()
    gap = float((one.mean(dim=0) - two.mean(dim=0)).norm() / spread.clamp(min=1e-12))
    chance = 1 / len(one) + 1 / len(two)  # expected square of the gap of two samples
    return gap if gap**2 > _BEYOND_CHANCE * chance else 0.0


def _moments(
    network: Network, w: Tensor, inputs: Inputs, options: ContinualOptions, seed: int
) -> InputMoments:
    sample = inputs.sample(min(_MOMENTS, len(inputs)), seed)
    groups = network.all_logits(w, sample.batches(_BATCH)).argmax(dim=1)
    return measure_moments(sample, groups, options.memory.rank)


def answered(
    memory: TaskMemory,
    network: Network,
    w: Tensor,  # (n,)
) -> TaskMemory:
    """Return the memory of a task with a network's outputs as targets.

    Args:
        memory: Memory of the task.
        network: Network as a function of the task's inputs.
        w: Weights of the network.
    """
    x = as_they_are(memory.inputs(), network.device)
    targets = answers(network, w, x, _BATCH) if len(x) else torch.empty(0, 1)
    return replace(memory, targets=targets.half().cpu())
