"""Measurement of functional change, agreement and accuracy on held-out examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from geomerge.data import Split
from geomerge.metrics import functional_change
from geomerge.networks.network import Network

__all__ = [
    "HeldOut",
    "HeldOutChange",
    "hold_out",
]


@dataclass(frozen=True)
class HeldOutChange:
    """Change of a network on held-out examples.

    Attributes:
        drift: Mean functional change |phi - phi_0|^2 from the intact network.
        agreement: Share of the intact network's labels that are unchanged, in [0, 1].
        accuracy: Accuracy, in [0, 1].
    """

    drift: float
    agreement: float
    accuracy: float


@dataclass(frozen=True)
class HeldOut:
    """Held-out examples with the logits of the intact network, made by :func:`hold_out`.

    Attributes:
        network: Network.
        split: Examples, N of them.
        output: Output whose change is measured.
        intact: Logits of the intact network, shape (N, m).
    """

    network: Network
    split: Split
    output: str
    intact: Tensor

    def __len__(self) -> int:
        """Return the number of examples N."""
        return len(self.intact)

    @property
    def accuracy(self) -> float:
        """Accuracy of the intact network, in [0, 1]."""
        return _share(self.intact.argmax(dim=1) == self.split.labels)

    def first(self, count: int) -> HeldOut:
        """Return the first examples."""
        return HeldOut(self.network, self.split.first(count), self.output, self.intact[:count])

    def logits(
        self,
        w: Tensor,  # (n,)
    ) -> Tensor:  # (N, m)
        """Return the logits of the network at other weights."""
        return self.network.all_logits(w, self.split.inputs.batches())

    def compare(
        self,
        w: Tensor,  # (n,)
    ) -> HeldOutChange:
        """Compare the network at other weights with the intact network."""
        logits = self.logits(w)
        labels = logits.argmax(dim=1)
        return HeldOutChange(
            functional_change(self.intact, logits, self.output),
            _share(labels == self.intact.argmax(dim=1)),
            _share(labels == self.split.labels),
        )

    def step_meter(self) -> Callable[[Tensor, Tensor], float]:
        """Return a function that measures the mean functional change of consecutive steps."""
        last: list[tuple[Tensor, Tensor]] = []  # a point and its logits, where the next step starts

        def change(before: Tensor, after: Tensor) -> float:
            if not last or last[0][0] is not before:
                last[:] = [(before, self.logits(before))]
            logits = self.logits(after)
            drift = functional_change(last[0][1], logits, self.output)
            last[:] = [(after, logits)]
            return drift

        return change


def hold_out(
    network: Network,
    w: Tensor,  # (n,)
    split: Split,
    output: str,
) -> HeldOut:
    """Return held-out examples with the logits of the intact network.

    Args:
        network: Network.
        w: Weights of the intact network.
        split: Examples.
        output: Output whose change is measured, one of
            :data:`~geomerge.metrics.outputs.OUTPUTS`.
    """
    return HeldOut(network, split, output, network.all_logits(w, split.inputs.batches()))


def _share(true: Tensor) -> float:
    return float(true.double().mean())
