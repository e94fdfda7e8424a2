"""Objectives of walks: KL to a teacher, output drift, cross-entropy, and their gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from geomerge.data import Inputs, Split
from geomerge.metrics import output_map
from geomerge.networks.batches import Batch, batch_size, concat, leaves, map_leaves, rows, take
from geomerge.networks.network import Network
from geomerge.processes import Team, team

__all__ = [
    "CrossEntropy",
    "KLToTeacher",
    "MixupDrift",
    "Objective",
    "OutputDrift",
    "Targets",
    "divergence",
    "log_probabilities",
    "random_batches",
    "weighted_sum",
]

Loss: TypeAlias = Callable[[Tensor], Tensor]  # function of logits, shape (B, m)
# Log-probabilities of all inputs, shape (N, m), or a function that computes them for a batch.
Targets: TypeAlias = Tensor | Callable[[Batch], Tensor]
Change: TypeAlias = Callable[[Batch, int], Batch]
_TEXTS = 16  # texts per gradient of a language model, at least


def divergence(
    target: Tensor,  # (B, m), log-probabilities
) -> Loss:
    """Return the mean KL(target || softmax f) as a function of logits f, shape (B, m)."""

    def of(logits: Tensor) -> Tensor:
        log_p = torch.log_softmax(logits, dim=1)
        return torch.nn.functional.kl_div(log_p, target, log_target=True, reduction="batchmean")

    return of


def _half_change(
    phi_0: Tensor,  # (B, m)
    output: str,
) -> Loss:
    """Return the mean |phi - phi_0|^2 / 2 as a function of logits, shape (B, m)."""

    def of(logits: Tensor) -> Tensor:
        return (output_map(logits, output) - phi_0).square().sum(dim=1).mean() / 2

    return of


def log_probabilities(
    network: Network,
    w: Tensor,  # (n,)
    inputs: Inputs,
    batch: int = 1000,
) -> Tensor:  # (N, m)
    """Return log softmax f(x, w) of all inputs, as targets of a walk.

    Args:
        network: Network f.
        w: Weights.
        inputs: Inputs x.
        batch: Number of inputs per pass.
    """
    found: Tensor | None = None
    for index, x in inputs.parts(batch):
        logits = network.logits_by_precision(w, x)
        if found is None:
            found = logits.new_empty(len(inputs), logits.shape[1])
        found[index] = logits.log_softmax(dim=1)
    assert found is not None, "there are inputs"
    return found


class Objective(ABC):
    """Negative gradient v = - grad_w of a loss on random batches.

    Inputs are drawn without replacement in every epoch.

    Args:
        network: Network that walks.
        inputs: Inputs of the loss.
        batch: Number of inputs per gradient.
        seed: Seed of the order of the inputs.

    Attributes:
        indices: Iterator over the indices of the batches, shape (B,).
        network: Network that walks.
    """

    def __init__(self, network: Network, inputs: Inputs, batch: int, seed: int) -> None:
        self.network = network
        self._inputs = inputs
        if inputs.at_once is not None:  # every token of a text is an example
            batch = min(batch, max(_TEXTS, batch // leaves(inputs.raw)[0].shape[1]))
        self.indices = random_batches(len(inputs), min(batch, len(inputs)), seed)

    def __call__(
        self,
        w: Tensor,  # (n,)
        out: Tensor | None = None,  # (n,)
    ) -> tuple[float, Tensor]:
        """Return the loss on the next batch and v, shape (n,).

        Args:
            w: Weights.
            out: Vector to overwrite with v; None allocates a new one.
        """
        mates = team()
        if mates is not None:
            return self._shared(w, next(self.indices), out, mates)
        x, loss_of = self.draw()
        negative, v = self.network.gradient(w, x, lambda logits: -loss_of(logits), out)
        return -negative, v

    def passes_with(self, other: Objective) -> bool:
        """Return whether inputs of both can be passed at once: one network, a row of one shape."""
        own = (self._inputs, other._inputs)
        plain = all(i.continuous and isinstance(i.raw, Tensor) for i in own)
        plain = plain and self._inputs.shape == other._inputs.shape
        return plain and self.network is other.network and team() is None

    def draw(self) -> tuple[Batch, Loss]:
        """Return the next inputs, shape (B, ...), and their mean loss as a function of logits."""
        return self._batch(next(self.indices))

    def _shared(
        self, w: Tensor, index: Tensor, out: Tensor | None, mates: Team
    ) -> tuple[float, Tensor]:
        """Return the loss and v summed over processes, each of which has a share of the batch."""
        part = mates.share(len(index))
        x, loss_of = self._batch(index, part)
        sums = torch.zeros(2, dtype=torch.float64, device=w.device)  # loss, and rows of logits
        v = torch.zeros_like(w) if out is None else out

        def scored(logits: Tensor) -> Tensor:
            sums[1] = len(logits)
            return -loss_of(logits)

        if len(index[part]):
            negative, v = self.network.gradient(w, x, scored, v)
            sums[0] = -negative * sums[1]
            v *= float(sums[1])
        else:  # fewer examples than processes
            v.zero_()
        mates.add([v])
        mates.add([sums])
        v /= float(sums[1])
        return float(sums[0] / sums[1]), v

    def skip(self, batches: int) -> None:
        """Draw batches without using them, to resume an interrupted walk.

        Args:
            batches: Number of batches that were used before.
        """
        for _ in range(batches):
            next(self.indices)

    @abstractmethod
    def _batch(self, index: Tensor, part: slice = slice(None)) -> tuple[Batch, Loss]:
        """Return inputs, shape (B, ...), and their mean loss as a function of logits.

        Args:
            index: Indices of the batch's examples.
            part: Slice of the batch that is needed.
        """


class KLToTeacher(Objective):
    """Mean KL(teacher || network) on the teacher's own inputs.

    Args:
        network: Network that walks.
        targets: Log-probabilities of the teacher on all inputs, shape (N, m), or a function that
            computes them for a batch, where they do not fit into memory (a language model has one
            row per token).
        inputs: Inputs of the teacher in the same order, without labels.
        batch: Number of inputs per gradient.
        seed: Seed of the order of the inputs.
        change: Function of a batch and its number that returns other inputs in its place, for
            which the targets are then computed; None takes the inputs as they are.
    """

    def __init__(
        self,
        network: Network,
        targets: Targets,
        inputs: Inputs,
        batch: int,
        seed: int,
        change: Change | None = None,
    ) -> None:
        super().__init__(network, inputs, batch, seed)
        assert change is None or not isinstance(targets, Tensor), "the teacher answers for changes"
        self._targets = targets
        self._change = change
        self._number = 0  # of batches drawn

    def skip(self, batches: int) -> None:
        """Draw batches without using them, to resume an interrupted walk.

        Args:
            batches: Number of batches that were used before.
        """
        super().skip(batches)
        self._number += batches

    def answer(self, x: Batch) -> Loss:
        """Return the divergence from the teacher on other inputs than its own.

        Args:
            x: Inputs, for which the teacher must compute its targets.
        """
        assert not isinstance(self._targets, Tensor), "targets of other inputs are not known"
        return divergence(self._targets(x))

    def _batch(self, index: Tensor, part: slice = slice(None)) -> tuple[Batch, Loss]:
        known = self._targets
        if self._change is None:
            index = index[part]
            x = self._inputs.batch(index)
        else:
            x = take(self._change(self._inputs.batch(index), self._number), part)
            self._number += 1
        return x, divergence(rows(known, index) if isinstance(known, Tensor) else known(x))


class OutputDrift(Objective):
    r"""Drift of the outputs, mean |phi(w) - phi_0|^2 / 2.

    Its direction is v = - J'(phi(w) - phi_0) / N; the inverse of the metric times v is the
    Gauss-Newton step that undoes the drift.

    Args:
        network: Network that walks.
        outputs: Mapped outputs phi_0 on all inputs, shape (N, m).
        inputs: Inputs in the same order, without labels.
        output: Name of the output map, one of :data:`~geomerge.metrics.outputs.OUTPUTS`.
        batch: Number of inputs per gradient.
        seed: Seed of the order of the inputs.
    """

    def __init__(
        self, network: Network, outputs: Tensor, inputs: Inputs, output: str, batch: int, seed: int
    ) -> None:
        super().__init__(network, inputs, batch, seed)
        self._outputs = outputs
        self._output = output

    def _batch(self, index: Tensor, part: slice = slice(None)) -> tuple[Batch, Loss]:
        index = index[part]
        return self._inputs.batch(index), _half_change(self._outputs[index], self._output)


class MixupDrift(Objective):
    """Drift of the outputs on mixtures of two inputs (mixup, Zhang et al. 2018).

    Outputs on mixtures need no labels. With few inputs they give a better estimate of the drift
    than :class:`OutputDrift`.

    Args:
        network: Network that walks.
        start: Weights whose outputs are preserved, shape (n,).
        inputs: Inputs, floats or pixels.
        output: Name of the output map, one of :data:`~geomerge.metrics.outputs.OUTPUTS`.
        batch: Number of mixtures per gradient.
        seed: Seed of the order of the inputs and of the mixtures.
        mix: Largest share of the second input, in (0, 1]; shares are uniform.
    """

    def __init__(
        self,
        network: Network,
        start: Tensor,
        inputs: Inputs,
        output: str,
        batch: int,
        seed: int,
        mix: float,
    ) -> None:
        super().__init__(network, inputs, batch, seed)
        self._start = start
        self._output = output
        self._mix = mix
        self._size = min(batch, len(inputs))
        self._generator = torch.Generator().manual_seed(seed)

    def skip(self, batches: int) -> None:
        """Draw batches and mixtures without using them, to resume an interrupted walk.

        Args:
            batches: Number of batches that were used before.
        """
        super().skip(batches)
        for _ in range(batches):
            self._draw()

    def _draw(self) -> tuple[Tensor, Tensor]:
        """Return uniform numbers for the shares of the second inputs, and the indices of these."""
        share = torch.rand(self._size, generator=self._generator)
        return share, torch.randperm(self._size, generator=self._generator)

    def _batch(self, index: Tensor, part: slice = slice(None)) -> tuple[Batch, Loss]:
        share, other = self._draw()

        def mixed(x: Tensor) -> Tensor:
            way, second = self._mix * share.to(x), x[other.to(x.device)]
            return torch.lerp(x, second, way.view(-1, *[1] * (x.dim() - 1)))[part]

        x = map_leaves(mixed, self._inputs.batch(index))
        phi_0 = output_map(self.network.logits_by_precision(self._start, x), self._output)
        return x, _half_change(phi_0, self._output)


def weighted_sum(
    objectives: Sequence[tuple[float, Objective]],
    w: Tensor,  # (n,)
    out: Tensor | None = None,  # (n,)
) -> tuple[list[float], Tensor]:  # (n,)
    """Return the losses of the next batches, and the sum of their v, in a single pass.

    A pass of all inputs takes less than one of each batch.

    Args:
        objectives: Factors of v and objectives of which each passes with the first.
        w: Weights.
        out: Vector to overwrite with the sum; None allocates a new one.
    """
    drawn = [objective.draw() for _, objective in objectives]
    sizes = [batch_size(x) for x, _ in drawn]
    losses: list[Tensor] = []

    def negative(logits: Tensor) -> Tensor:
        parts = zip(drawn, logits.split(sizes), strict=True)
        losses[:] = [loss_of(part) for (_, loss_of), part in parts]
        factors = (factor for factor, _ in objectives)
        return -torch.stack([f * loss for f, loss in zip(factors, losses, strict=True)]).sum()

    network = objectives[0][1].network
    _, v = network.gradient(w, concat([x for x, _ in drawn]), negative, out)
    return [float(loss.detach()) for loss in losses], v


class CrossEntropy(Objective):
    """Mean cross-entropy on labelled examples; the other objectives use no labels.

    Args:
        network: Network that walks.
        split: Labelled examples.
        batch: Number of examples per gradient.
        seed: Seed of the order of the examples.
    """

    def __init__(self, network: Network, split: Split, batch: int, seed: int) -> None:
        super().__init__(network, split.inputs, batch, seed)
        self._split = split

    def _batch(self, index: Tensor, part: slice = slice(None)) -> tuple[Batch, Loss]:
        index = index[part]
        loss_of = partial(torch.nn.functional.cross_entropy, target=self._split.targets(index))
        return self._inputs.batch(index), loss_of


def random_batches(count: int, batch: int, seed: int) -> Iterator[Tensor]:  # (batch,) each
    """Yield the places of inputs in batches without end, each input once in an epoch.

    Args:
        count: Number of inputs.
        batch: Number of inputs in a batch.
        seed: Seed of the orders.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - batch + 1, batch):
            yield order[start : start + batch]
