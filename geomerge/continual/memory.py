"""What is kept of a task that was learned: a sketch, its inputs' moments, and the old outputs.

No inputs are kept unless they are asked for, and labels never. All of it is tensors of known size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from geomerge.continual.grown import Shapes, carry_metric, carry_weights
from geomerge.continual.moments import InputMoments, measure_moments
from geomerge.continual.settings import ContinualOptions
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
    "NetworkOf",
    "TaskMemory",
    "answers",
    "fit_memory",
    "remember",
]

NetworkOf = Callable[[int | None], Network]  # as a function of the inputs of a head

UNSEEN = -30.0  # log-probability of classes that are masked, or came later
_BATCH = 500
_MOMENTS = 5000  # inputs that moments are measured on
_LEAST_RANK = 4
_SHRINK = 0.7  # of sketches and moments, until they fit


@dataclass(frozen=True)
class TaskMemory:
    """What is kept of a task.

    Attributes:
        name: For reports, ``"task 3"``.
        head: Task label of a network with a head for each task, else None.
        shapes: Of the network's tensors then.
        origin: The weights then, shape (n,); empty where the sketch went into another.
        sketch: The metric there, on this task; None where it was merged into that of an earlier
            task, or none is needed.
        tasks: Number of tasks that the sketch stands for.
        moments: Of its inputs; None where none are kept.
        examples: Inputs that are kept, shape (k, ...).
        seed: Of the pseudo-inputs.
        targets: Log-probabilities on pseudo-inputs and kept inputs, in half precision, (N, m).
        kept: Share of the sketch's trace and of the inputs' variance that is still kept.
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
        """Return pseudo-inputs, drawn again, and kept inputs: those that targets belong to."""
        count = len(self.targets) - batch_size(self.examples)
        if self.moments is None or not count:
            return self.examples
        return concat([self.moments.draw(count, self.seed), self.examples])

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
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
    """Return log-probabilities that can be kept: masked classes are farther down than halves go.

    Args:
        network: The network.
        w: Its weights.
        inputs: What it is asked.
        batch: Inputs per pass.
    """
    return log_probabilities(network, w, inputs, batch).clamp(min=UNSEEN)


def remember(
    network: Network,
    w: Tensor,  # (n,)
    inputs: Inputs,
    name: str,
    head: int | None,
    settings: ContinualOptions,
    seed: int,
) -> TaskMemory:
    """Make what a task leaves behind.

    Args:
        network: The network as a function of this task's inputs.
        w: Its weights, with the task learned.
        inputs: Unlabelled, of the task.
        name: For reports.
        head: Task label, where the network has heads.
        settings: How much is kept.
        seed: Of samples and pseudo-inputs.
    """
    sketch, moments, kept = None, None, {}
    if settings.metric == "kronecker" or settings.budget is not None:
        sample = inputs.sample(settings.sketch_inputs, seed)
        sketch = estimate_kronecker(network, w, sample.batches(_BATCH), settings.output, seed)
        kept["sketch"] = 1.0
    if settings.pseudo_inputs:
        if not inputs.continuous or not isinstance(inputs.raw, Tensor):
            raise OptionError(
                "pseudo-inputs are drawn from the moments of inputs, and these are "
                f"{'integers' if isinstance(inputs.raw, Tensor) else 'several tensors'}; give "
                "pseudo_inputs=0 and examples=K"
            )
        sample = inputs.sample(min(_MOMENTS, len(inputs)), seed)
        groups = network.all_logits(w, sample.batches(_BATCH)).argmax(dim=1)
        moments = measure_moments(sample, groups, settings.rank)
        kept["moments"] = moments.kept
    examples = to_device(inputs.sample(settings.examples, seed + 1).batch(slice(None)), "cpu")
    unanswered = torch.empty(settings.pseudo_inputs + batch_size(examples), 0)
    remembered = TaskMemory(
        name, head, dict(network.shapes), w.cpu(), sketch, 1, moments, examples, seed,
        unanswered, kept,
    )  # fmt: skip
    return answered(remembered, network, w)


def answered(
    remembered: TaskMemory,
    network: Network,
    w: Tensor,  # (n,)
) -> TaskMemory:
    """Return a task with a network's outputs as what is to be kept.

    Args:
        remembered: The task.
        network: The network as a function of its inputs.
        w: Its weights.
    """
    x = as_they_are(remembered.inputs(), network.device)
    targets = answers(network, w, x, _BATCH) if len(x) else torch.empty(0, 1)
    return replace(remembered, targets=targets.half().cpu())


def fit_memory(
    memory: Sequence[TaskMemory],
    limit: int,
    network_of: NetworkOf,
    w: Tensor,  # (n,)
) -> list[TaskMemory]:
    """Shrink what is kept until it fits: first ranks, then the oldest sketches become one.

    Args:
        memory: All tasks.
        limit: Bytes.
        network_of: The network as a function of each head's inputs.
        w: Its weights, for what has been added to it since a task was remembered.

    Returns:
        The tasks; ``kept`` says what share of trace and variance was left.

    Raises:
        OptionError: If even the least does not fit.
    """
    found = list(memory)
    while (size := sum(r.nbytes for r in found)) > limit:
        smaller = [_smaller(r) for r in found]
        own = [i for i, r in enumerate(found) if r.sketch is not None]
        if sum(r.nbytes for r in smaller) < size:
            found = smaller
        elif len(own) > 1:
            first, second = own[:2]
            network = network_of(found[first].head)
            found[first] = _joined(found[first], found[second], network, w)
            kept = {k: v for k, v in found[second].kept.items() if k != "sketch"}
            empty = found[second].origin.new_empty(0)
            found[second] = replace(found[second], sketch=None, origin=empty, kept=kept)
        else:
            raise OptionError(
                f"what is kept of {len(found)} tasks needs {size} bytes at least, expected at most "
                f"{limit}; raise the limit or lower pseudo_inputs and examples"
            )
    for i, (r, before) in enumerate(zip(found, memory, strict=True)):
        if r.moments is not before.moments:  # other pseudo-inputs: the network then is asked again
            network = network_of(r.head)
            then = (
                carry_weights(before.origin, before.shapes, network, w) if len(before.origin) else w
            )
            found[i] = answered(r, network, then)
    return found


def _smaller(remembered: TaskMemory) -> TaskMemory:
    """Keep seven tenths of what can be truncated."""
    kept = dict(remembered.kept)
    sketch, moments = remembered.sketch, remembered.moments
    if sketch is not None:
        sketch = truncated_metric(sketch, int(_SHRINK * sketch.nbytes / 4))
        kept["sketch"] = _leading(sketch)
    if moments is not None and moments.rank > _LEAST_RANK:
        moments = moments.truncated(max(_LEAST_RANK, int(_SHRINK * moments.rank)))
        kept["moments"] = moments.kept
    return replace(remembered, sketch=sketch, moments=moments, kept=kept)


def _joined(
    first: TaskMemory,
    second: TaskMemory,
    network: Network,
    w: Tensor,  # (n,)
) -> TaskMemory:
    """Return the first task with a sketch of both."""
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
    """Return the share of the trace of all layers in kept eigenvectors."""
    whole = sum(layer.trace for layer in metric.layers)
    inside = sum(layer.leading_trace for layer in metric.layers)
    return inside / whole if whole > 0 else 1.0
