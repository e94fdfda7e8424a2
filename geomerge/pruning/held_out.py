"""Held-out examples, and what a network does on them at other weights."""

from __future__ import annotations

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
    """A network beside the intact one, on the same inputs.

    Attributes:
        drift: Mean functional change |phi - phi_0|^2.
        agreement: Share of the labels that stay, in [0, 1].
        accuracy: Share of the labels that are right, in [0, 1].
    """

    drift: float
    agreement: float
    accuracy: float


@dataclass(frozen=True)
class HeldOut:
    """Examples to compare on; :func:`hold_out` makes them.

    Attributes:
        network: The network.
        split: The examples, N of them.
        output: What a functional change is measured in.
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
        """Return only the first examples."""
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
        """Compare the network at other weights with the intact one."""
        logits = self.logits(w)
        labels = logits.argmax(dim=1)
        return HeldOutChange(
            functional_change(self.intact, logits, self.output),
            _share(labels == self.intact.argmax(dim=1)),
            _share(labels == self.split.labels),
        )


def hold_out(
    network: Network,
    w: Tensor,  # (n,)
    split: Split,
    output: str,
) -> HeldOut:
    """Run the intact network on examples that it will be compared on.

    Args:
        network: The network.
        w: Its weights.
        split: The examples.
        output: What a functional change is measured in: one of
            :data:`~geomerge.metric.outputs.OUTPUTS`.
    """
    return HeldOut(network, split, output, network.all_logits(w, split.inputs.batches()))


def _share(true: Tensor) -> float:
    return float(true.double().mean())
