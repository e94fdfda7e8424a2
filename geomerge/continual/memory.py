"""Memory of learned tasks: a sketch, moments of the inputs, and the old outputs.

No inputs are stored unless they are asked for, and labels never. All of it is tensors of known
size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from geomerge.continual.grown_heads import Shapes, carry_metric, carry_weights
from geomerge.continual.options import ContinualOptions
from geomerge.continual.pseudo_inputs import InputMoments, measure_moments
from geomerge.data import Inputs, as_they_are
from geomerge.errors import OptionError
from geomerge.metrics import KroneckerMetric, combine
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.metrics.sketch import truncated_metric
from geomerge.networks.batches import Batch, batch_size, concat, leaves, to_device
from geomerge.networks.network import Network
from geomerge.walks.objectives import log_probabilities

__all__ = [
    "UNSEEN",
    "Experience",
    "NetworkOf",
    "TaskMemory",
    "answers",
    "fit_memory",
    "remember",
]

NetworkOf = Callable[[int | None], Network]  # the network as a function of the inputs of a head

UNSEEN = -30.0  # log-probability of classes that are masked, or came later
_BATCH = 500
_MOMENTS = 5000  # inputs on which moments are measured
_LEAST_RANK = 4
_SHRINK = 0.7  # factor of ranks per round, until the memory fits


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
        origin: Weights when the task was learned, shape (n,); empty where the sketch went into
            another.
        sketch: Metric of the task at those weights; None where it was merged into that of an
            earlier task, or none is needed.
        tasks: Number of tasks that the sketch stands for.
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

    @property
    def nbytes(self) -> int:
        """Number of bytes of everything stored."""
        total = self.origin.nbytes + self.targets.nbytes
        total += sum(leaf.nbytes for leaf in leaves(self.examples))
        if self.moments is not None:
            total += self.moments.nbytes
        if self.sketch is not None:
            total += self.sketch.nbytes
        return total


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
        options: Options that say how much is stored.
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
        if not inputs.continuous or not isinstance(inputs.raw, Tensor):
            raise OptionError(
                "pseudo-inputs are drawn from the moments of inputs, and these are "
                f"{'integers' if isinstance(inputs.raw, Tensor) else 'several tensors'}; give "
                "`pseudo_inputs` as 0 and a number of `examples`"
            )
        sample = inputs.sample(min(_MOMENTS, len(inputs)), seed)
        groups = network.all_logits(w, sample.batches(_BATCH)).argmax(dim=1)
        moments = measure_moments(sample, groups, keep.rank)
        kept["moments"] = moments.kept
    examples = to_device(inputs.sample(keep.examples, seed + 1).batch(slice(None)), "cpu")
    unanswered = torch.empty(keep.pseudo_inputs + batch_size(examples), 0)
    memory = TaskMemory(
        experience.name, experience.head, dict(network.shapes), w.cpu(), sketch, 1, moments,
        examples, seed, unanswered, kept,
    )  # fmt: skip
    return answered(memory, network, w)


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


def fit_memory(
    memory: Sequence[TaskMemory],
    limit: int,
    network_of: NetworkOf,
    w: Tensor,  # (n,)
) -> list[TaskMemory]:
    """Shrink memories until they fit: first ranks, then the oldest sketches are joined.

    Args:
        memory: Memories of all tasks.
        limit: Largest number of bytes.
        network_of: Function of a head that returns the network as its task sees it.
        w: Weights of the network; weights added since a task was remembered are theirs.

    Returns:
        The memories, with the shares of trace and variance that are left in ``kept``.

    Raises:
        OptionError: If even the smallest does not fit.
    """
    fitted = list(memory)
    while (size := sum(r.nbytes for r in fitted)) > limit:
        smaller = [_smaller(r) for r in fitted]
        own = [i for i, r in enumerate(fitted) if r.sketch is not None]
        if sum(r.nbytes for r in smaller) < size:
            fitted = smaller
        elif len(own) > 1:
            first, second = own[:2]
            network = network_of(fitted[first].head)
            fitted[first] = _joined(fitted[first], fitted[second], network, w)
            kept = {k: v for k, v in fitted[second].kept.items() if k != "sketch"}
            empty = fitted[second].origin.new_empty(0)
            fitted[second] = replace(fitted[second], sketch=None, origin=empty, kept=kept)
        else:
            raise OptionError(
                f"the memory of {len(fitted)} tasks needs {size} bytes at least, expected at most "
                f"{limit}; raise the limit, `memory_limit`, or lower `pseudo_inputs` and "
                "`examples`"
            )
    for i, (r, before) in enumerate(zip(fitted, memory, strict=True)):
        if r.moments is not before.moments:  # other pseudo-inputs need other targets
            network = network_of(r.head)
            then = (
                carry_weights(before.origin, before.shapes, network, w) if len(before.origin) else w
            )
            fitted[i] = answered(r, network, then)
    return fitted


def _smaller(memory: TaskMemory) -> TaskMemory:
    """Return a memory with seven tenths of its ranks."""
    kept = dict(memory.kept)
    sketch, moments = memory.sketch, memory.moments
    if sketch is not None:
        sketch = truncated_metric(sketch, int(_SHRINK * sketch.nbytes / 4))
        kept["sketch"] = _leading(sketch)
    if moments is not None and moments.rank > _LEAST_RANK:
        moments = moments.truncated(max(_LEAST_RANK, int(_SHRINK * moments.rank)))
        kept["moments"] = moments.kept
    return replace(memory, sketch=sketch, moments=moments, kept=kept)


def _joined(
    first: TaskMemory,
    second: TaskMemory,
    network: Network,
    w: Tensor,  # (n,)
) -> TaskMemory:
    """Return the first memory with a sketch of both tasks."""
    assert first.sketch is not None
    assert second.sketch is not None
    metrics = [carry_metric(r.sketch, r.shapes, network) for r in (first, second) if r.sketch]
    whole = sum(metric.nbytes for metric in metrics) // 2
    sketch = truncated_metric(combine(metrics), whole // 4)
    return replace(
        first,
        shapes=dict(network.shapes),
        origin=carry_weights(second.origin, second.shapes, network, w).cpu(),
        sketch=sketch,
        tasks=first.tasks + second.tasks,
        kept=first.kept | {"sketch": _leading(sketch)},
    )


def _leading(metric: KroneckerMetric) -> float:
    """Return the share of the trace of all layers in stored eigenvectors."""
    whole = sum(layer.trace for layer in metric.layers)
    inside = sum(layer.leading_trace for layer in metric.layers)
    return inside / whole if whole > 0 else 1.0
