"""Where a walk wants to go from a point: toward a function, or toward labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from geomerge.data import Inputs, Split
from geomerge.metrics import output_map
from geomerge.networks.batches import Batch, map_leaves
from geomerge.networks.network import Network

__all__ = [
    "CrossEntropy",
    "KLToTeacher",
    "MixupDrift",
    "Objective",
    "OutputDrift",
    "divergence",
    "log_probabilities",
]

Loss: TypeAlias = Callable[[Tensor], Tensor]  # of logits, shape (B, m)


def divergence(
    target: Tensor,  # (B, m), log-probabilities
) -> Loss:
    """Return the function of logits (B, m) that is their mean KL(target || softmax f)."""

    def of(logits: Tensor) -> Tensor:
        log_p = torch.log_softmax(logits, dim=1)
        return torch.nn.functional.kl_div(log_p, target, log_target=True, reduction="batchmean")

    return of


def _half_change(
    phi_0: Tensor,  # (B, m)
    output: str,
) -> Loss:
    """Return the function of logits (B, m) that is their mean |phi - phi_0|^2 / 2."""

    def of(logits: Tensor) -> Tensor:
        return (output_map(logits, output) - phi_0).square().sum(dim=1).mean() / 2

    return of


def log_probabilities(
    network: Network,
    w: Tensor,  # (n,)
    inputs: Inputs,
    batch: int = 1000,
) -> Tensor:  # (N, m)
    """Return log softmax f(x, w) of all inputs."""
    return network.all_logits(w, inputs.batches(batch)).log_softmax(dim=1)


class Objective(ABC):
    """v = - grad_w of a loss, on batches in which every input is seen once before any again."""

    def __init__(self, network: Network, inputs: Inputs, batch: int, seed: int) -> None:
        self._network = network
        self._inputs = inputs
        self._order = _order(len(inputs), min(batch, len(inputs)), seed)

    def __call__(
        self,
        w: Tensor,  # (n,)
        out: Tensor | None = None,  # (n,)
    ) -> tuple[float, Tensor]:
        """Return the loss on the next batch and v there, in ``out`` or in a new vector (n,)."""
        x, loss_of = self._batch(next(self._order))
        negative, v = self._network.gradient(w, x, lambda logits: -loss_of(logits), out)
        return -negative, v

    def skip(self, batches: int) -> None:
        """Pass over batches that were drawn before a walk was interrupted."""
        for _ in range(batches):
            next(self._order)

    @abstractmethod
    def _batch(self, index: Tensor) -> tuple[Batch, Loss]:
        """Return inputs, shape (B, ...), and the loss of their logits."""


class KLToTeacher(Objective):
    """v = - grad_w D(w), D the mean KL(teacher || network) on the teacher's own inputs.

    Args:
        network: The network that walks.
        targets: The teacher's log-probabilities on all inputs, shape (N, m).
        inputs: Inputs of the teacher's manifold, in the same order; labels are never seen.
        batch: Inputs per gradient.
        seed: Of the order in which inputs come; every input is seen once before any comes again.
    """

    def __init__(
        self, network: Network, targets: Tensor, inputs: Inputs, batch: int, seed: int
    ) -> None:
        super().__init__(network, inputs, batch, seed)
        self._targets = targets

    def _batch(self, index: Tensor) -> tuple[Batch, Loss]:
        return self._inputs.batch(index), divergence(self._targets[index])


class OutputDrift(Objective):
    r"""v = - J'(phi(w) - phi_0) / N: half the steepest descent of the squared functional change.

    With the inverse of the metric before it, it is the Gauss-Newton step that takes the drift
    from the outputs phi_0 back. Its loss is mean |phi(w) - phi_0|^2 / 2.

    Args:
        network: The network that walks.
        outputs: phi_0 on all inputs, shape (N, m).
        inputs: The manifold, in the same order; labels are never seen.
        output: What phi is: one of :data:`~geomerge.metrics.outputs.OUTPUTS`.
        batch: Inputs per gradient.
        seed: Of the order in which inputs come; every input is seen once before any comes again.
    """

    def __init__(
        self, network: Network, outputs: Tensor, inputs: Inputs, output: str, batch: int, seed: int
    ) -> None:
        super().__init__(network, inputs, batch, seed)
        self._outputs = outputs
        self._output = output

    def _batch(self, index: Tensor) -> tuple[Batch, Loss]:
        return self._inputs.batch(index), _half_change(self._outputs[index], self._output)


class MixupDrift(Objective):
    """As :class:`OutputDrift`, on mixtures of two inputs each (Zhang et al. 2018, mixup).

    What the network does between inputs is its function too, and is known without labels: where
    there are few inputs it says more of what to keep.

    Args:
        network: The network that walks.
        start: The weights whose outputs are wanted, shape (n,).
        inputs: The manifold, of floats or pixels.
        output: What phi is: one of :data:`~geomerge.metrics.outputs.OUTPUTS`.
        batch: Mixtures per gradient.
        seed: Of the order of inputs and of the mixtures.
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
        """Pass over batches and mixtures that were drawn before a walk was interrupted."""
        super().skip(batches)
        for _ in range(batches):
            self._draw()

    def _draw(self) -> tuple[Tensor, Tensor]:
        """Return what decides the shares of the second inputs of a batch, and which they are."""
        share = torch.rand(self._size, generator=self._generator)
        return share, torch.randperm(self._size, generator=self._generator)

    def _batch(self, index: Tensor) -> tuple[Batch, Loss]:
        share, other = self._draw()

        def mixed(x: Tensor) -> Tensor:
            part, second = self._mix * share.to(x), x[other.to(x.device)]
            return torch.lerp(x, second, part.view(-1, *[1] * (x.dim() - 1)))

        x = map_leaves(mixed, self._inputs.batch(index))
        phi_0 = output_map(self._network.logits(self._start, x), self._output)
        return x, _half_change(phi_0, self._output)


class CrossEntropy(Objective):
    """v = - grad_w of the mean cross-entropy: the one direction that sees labels.

    Args:
        network: The network that walks.
        split: Labelled examples.
        batch: Examples per gradient.
        seed: Of the order in which they come.
    """

    def __init__(self, network: Network, split: Split, batch: int, seed: int) -> None:
        super().__init__(network, split.inputs, batch, seed)
        self._labels = split.labels

    def _batch(self, index: Tensor) -> tuple[Batch, Loss]:
        loss_of = partial(torch.nn.functional.cross_entropy, target=self._labels[index])
        return self._inputs.batch(index), loss_of


def _order(count: int, batch: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - batch + 1, batch):
            yield order[start : start + batch]
