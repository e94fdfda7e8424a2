"""The functional change of steps, measured on a few inputs of one task."""

from __future__ import annotations

from torch import Tensor

from geomerge.data import Inputs
from geomerge.merging.sides import Side
from geomerge.metrics import functional_change
from geomerge.networks.network import Network

__all__ = ["Probe", "probe_of"]

_INPUTS = 256


class Probe:
    """Measures the functional change of steps on a fixed few inputs of one task.

    Args:
        network: The network.
        inputs: The task's inputs.
        output: What is measured, such as ``"hellinger"``.
    """

    def __init__(self, network: Network, inputs: Inputs, output: str) -> None:
        self._network = network
        self._x = inputs.batch(slice(0, _INPUTS))
        self._output = output
        self._last: tuple[Tensor, Tensor] | None = None  # a point and its logits

    def __call__(
        self,
        before: Tensor,  # (n,)
        after: Tensor,  # (n,)
    ) -> float:
        """Return mean |phi(after) - phi(before)|^2."""
        if self._last is None or self._last[0] is not before:
            self._last = (before, self._network.logits(before, self._x))
        logits = self._network.logits(after, self._x)
        change = functional_change(self._last[1], logits, self._output)
        self._last = (after, logits)
        return change


def probe_of(side: Side, output: str) -> Probe | None:
    """Return what measures changes of a side's function, on inputs that the walk may not use."""
    if side.task is not None:
        return Probe(side.network, side.task.select.inputs, output)
    if side.manifold is not None:
        return Probe(side.network, side.manifold, output)
    return None
