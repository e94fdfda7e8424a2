"""Walk of a sharded network toward the functions of several teachers, in the metric of all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geomerge.data import Inputs, Split
from geomerge.errors import NumericalError
from geomerge.metrics import KroneckerMetric, combine
from geomerge.networks.batches import Batch
from geomerge.sharded.layout import Layout
from geomerge.sharded.measure import measure_sharded, own_share
from geomerge.sharded.network import ShardedNetwork
from geomerge.walks.objectives import divergence, random_batches
from geomerge.walks.walk import FunctionWalkOptions

__all__ = ["Measuring", "ShardedStep", "ShardedWalk", "Teacher", "answers", "share_right"]


@dataclass(frozen=True)
class Teacher:
    """Function of one network on its inputs.

    Attributes:
        inputs: Inputs, in one order in all processes.
        targets: Log-probabilities of the network on all of them, shape (N, m).
    """

    inputs: Inputs
    targets: Tensor


@dataclass(frozen=True)
class Measuring:
    """Settings of measurements of the metric, and of all passes.

    Attributes:
        output: Output whose change the metric measures.
        inputs: Largest number of inputs of each teacher.
        seed: Seed of the samples, of random signs and of the order of batches.
        at_once: Number of inputs per process and pass.
    """

    output: str = "hellinger"
    inputs: int = 2000
    seed: int = 0
    at_once: int = 32


@dataclass(frozen=True)
class ShardedStep:
    """Numbers of a step.

    Attributes:
        distance: KL to the teacher before the step.
        norm: Length |theta| of the step.
        predicted: Predicted functional change theta' g theta.
    """

    distance: float
    norm: float
    predicted: float


def _passes(
    network: ShardedNetwork,
    inputs: Inputs,
    index: Tensor,  # (N,)
    at_once: int,
) -> Iterator[tuple[Tensor, Batch, int]]:
    """Yield places of inputs, their batch, and how many of it are this process's share.

    A process without a share of a pass gets one input all the same, since every pass is one of all.
    """
    for chunk in index.split(at_once * network.mates.size):
        share = own_share(len(chunk), network.mates)
        real = share.stop - share.start
        own = chunk[share] if real else chunk[:1]
        yield own, inputs.batch(own), real


def answers(
    network: ShardedNetwork, inputs: Inputs, at_once: int = Measuring.at_once
) -> Tensor:  # (N, m)
    """Return the log-probabilities of all inputs, in every process.

    Args:
        network: Network.
        inputs: Inputs, in one order in all processes.
        at_once: Number of inputs per process and pass.
    """
    found: Tensor | None = None
    with torch.no_grad():
        for own, x, real in _passes(network, inputs, torch.arange(len(inputs)), at_once):
            logits = network.logits(x)
            if found is None:
                found = logits.new_zeros(len(inputs), logits.shape[1])
            if real:
                found[own] = logits.log_softmax(dim=1)
    assert found is not None, "there are inputs"
    network.mates.add([found])
    return found


def share_right(network: ShardedNetwork, split: Split, at_once: int = Measuring.at_once) -> float:
    """Return the share of examples whose label has the largest logit, in [0, 1].

    Args:
        network: Network.
        split: Labelled examples, in one order in all processes.
        at_once: Number of examples per process and pass.
    """
    right = torch.zeros(1, dtype=torch.float64)
    with torch.no_grad():
        everything = torch.arange(len(split.labels))
        for own, x, real in _passes(network, split.inputs, everything, at_once):
            hits = network.logits(x).argmax(dim=1) == split.labels[own]
            right += float(hits.sum()) if real else 0.0
    network.mates.add([right])
    return float(right) / len(split.labels)


class ShardedWalk:
    """Steps of eq. (7) with momentum, as those of a walk toward functions in one process.

    Gradients are summed over processes into shards, brought to the owners of the layers, damped by
    the inverse of the metric there and brought back as steps.

    Args:
        network: Network at the start of the walk.
        layout: Places of the weights of a step.
        teachers: Teachers, which take turns.
        settings: Settings of the walk.
        measuring: Settings of measurements and passes.
        taken: Number of steps that were taken before.

    Attributes:
        taken: Number of steps so far.
        momentum: Momentum of this process's vector, shape (n,) of the layout.
        metric: Metric of the next step; None before the first.
    """

    def __init__(
        self,
        network: ShardedNetwork,
        layout: Layout,
        teachers: Sequence[Teacher],
        settings: FunctionWalkOptions,
        measuring: Measuring,
        taken: int = 0,
    ) -> None:
        self._network, self._layout = network, layout
        self._teachers, self._settings, self._measuring = list(teachers), settings, measuring
        self.taken = taken
        self.momentum = torch.zeros(layout.n, dtype=network.dtype)
        self.metric: KroneckerMetric | None = None
        count = len(self._teachers)
        self._batches = []
        for k, teacher in enumerate(self._teachers):  # they take turns
            size = len(teacher.inputs)
            batches = random_batches(size, min(settings.batch, size), measuring.seed)
            for _ in range((taken + count - 1 - k) // count):
                next(batches)
            self._batches.append(batches)

    @property
    def steps(self) -> int:
        """Number of all steps."""
        return self._settings.steps * len(self._teachers)

    @property
    def due(self) -> bool:
        """Whether the metric is measured before the next step."""
        turn, teacher = divmod(self.taken, len(self._teachers))
        return teacher == 0 and turn in self._settings.refresh

    def measure(self) -> None:
        """Measure the metric of the next steps at the network's weights."""
        how, found = self._measuring, []
        self.metric = None  # not to be held beside the next one's second moments
        for k, teacher in enumerate(self._teachers):
            self._network.use(k)
            few = teacher.inputs.sample(how.inputs, how.seed)
            found.append(
                measure_sharded(
                    self._network, self._layout, few,
                    output=how.output, seed=how.seed, at_once=how.at_once,
                )
            )  # fmt: skip
        whole = combine(found, mean=True)
        del found
        assert isinstance(whole, KroneckerMetric)
        self.metric = whole.truncate(self._settings.damping)

    def step(self) -> ShardedStep:
        """Take the next step.

        Raises:
            NumericalError: If the distance to the teacher is not finite, in every process.
        """
        settings, metric = self._settings, self.metric
        assert metric is not None, "the metric was measured"
        turn, number = divmod(self.taken, len(self._teachers))
        rate = settings.learning_rate * (1 - turn / settings.steps)
        distance, v = self._gradient(number)
        if not distance < float("inf"):
            raise NumericalError(
                f"the distance to the teacher is {distance} after {turn} steps, expected a "
                "finite number; give a smaller `learning_rate` or `damping`"
            )
        torch.add(v, self.momentum, alpha=settings.momentum, out=self.momentum)
        damping = settings.damping
        scale = metric.min_eigenvalue + damping
        theta, change = metric.damped_inverse(self.momentum, damping, scale)
        for name, part in self._layout.returned(theta):
            self._network.shard(name).add_(part, alpha=rate)
        sums = torch.tensor([float(theta.double().square().sum()), change], dtype=torch.float64)
        self._network.mates.add([sums])
        self.taken += 1
        length, predicted = sums.tolist()
        return ShardedStep(distance, rate * length**0.5, max(rate**2 * predicted, 0.0))

    def _gradient(self, number: int) -> tuple[float, Tensor]:  # (n,)
        """Return the mean KL to a teacher on the next batch, and this process's part of v."""
        network, teacher, mates = self._network, self._teachers[number], self._network.mates
        network.use(number)
        index = next(self._batches[number])
        value = torch.zeros(1, dtype=torch.float64)
        with network.trainable(self._layout.names):
            for own, x, real in _passes(network, teacher.inputs, index, self._measuring.at_once):
                # FSDP divides the sum over processes by their number.
                share = real * mates.size / len(index)
                loss = share * divergence(teacher.targets[own])(network.logits(x))
                loss.backward()
                value += float(loss.detach()) / mates.size
            v = self._layout.gathered(network.gradient).neg_()
        mates.add([value])
        return float(value), v
