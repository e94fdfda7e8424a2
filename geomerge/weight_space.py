"""Weight spaces: several experts as points of the weight space of one network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from geomerge.data.batchnorm import re_estimate
from geomerge.expert import Expert
from geomerge.io import paged
from geomerge.networks.factor_form import FactorForm
from geomerge.networks.network import Network

__all__ = ["WeightSpace"]


@dataclass(frozen=True, eq=False)
class WeightSpace:
    """Experts of one network, as points of its weight space.

    Attributes:
        network: Network with all its outputs.
        experts: Experts in order, each with the network of its task's outputs; a path leads from
            the first to the last.
        head: Protocol of the head, one of :data:`~geomerge.merging.heads.HEADS`.
        bn: Policy for running statistics, ``"keep"`` or ``"re-estimate"``; None without any.
    """

    network: Network
    experts: tuple[Expert, ...]
    head: str = "shared"
    bn: str | None = None

    def __iter__(self) -> Iterator[Expert]:
        """Iterate over the experts."""
        return iter(self.experts)

    def __len__(self) -> int:
        """Return the number of experts."""
        return len(self.experts)

    def __getitem__(self, name: str) -> Expert:
        """Return the expert of a name."""
        return next(expert for expert in self.experts if expert.name == name)

    def with_expert(self, expert: Expert) -> WeightSpace:
        """Return the space with another expert in the place of the one of the same name."""
        experts = [expert if known.name == expert.name else known for known in self]
        return replace(self, experts=tuple(experts))

    @property
    def ends(self) -> tuple[Expert, Expert]:
        """The first and the last expert, where a path starts and ends."""
        return self.experts[0], self.experts[-1]

    def middle(self) -> Tensor:  # (n,)
        """Return the mean of all weights: nearer to each expert than they are to each other."""
        first = self.experts[0].weights
        mean = paged.empty(len(first), first.dtype, first.device)
        for out, *those in paged.in_parts(mean, *(expert.weights for expert in self)):
            torch.mean(torch.stack(those), dim=0, out=out)
        held = self.network.held  # equal in all, and a mean of equal numbers is rounded
        return mean if held is None else torch.where(held, self.experts[0].weights, mean)

    def holding(self, names: Iterable[str]) -> WeightSpace:
        """Return the same space with other frozen tensors, which are equal in all experts.

        Args:
            names: Names of the tensors in the state dict.
        """
        names = frozenset(names)
        experts = [replace(e, network=e.network.holding(names)) for e in self]
        return replace(self, network=self.network.holding(names), experts=tuple(experts))

    @property
    def common_zeros(self) -> Tensor:  # (n,), bool
        """Mask of the parameters that are exactly zero in every expert."""
        zero = torch.stack([expert.weights == 0 for expert in self]).all(dim=0)
        zero[self.network.n_parameters :] = False
        return zero

    @property
    def unchanged(self) -> Tensor:  # (n,), bool
        """Mask of the weights that are the same in every expert."""
        first, *others = (expert.weights for expert in self)
        return torch.stack([w == first for w in others]).all(dim=0)

    def settle(
        self,
        w: Tensor,  # (n,)
        count: int | None = None,
    ) -> Tensor:  # (n,)
        """Return weights with running statistics by the policy.

        Args:
            w: Weights.
            count: Number of inputs of each expert; None takes as many as are needed.
        """
        if self.bn != "re-estimate":
            return w
        inputs = [expert.inputs for expert in self if expert.inputs is not None]
        few = inputs if count is None else [x.sample(count, 0) for x in inputs]
        return re_estimate(self.network, w, few)

    def limited(
        self,
        max_batch: int,
        max_moments: int | None = None,
        factor_form: FactorForm = FactorForm.WHOLE,
    ) -> WeightSpace:
        """Return the same space with passes of fewer inputs, which need less memory.

        Args:
            max_batch: Largest number of inputs in one pass.
            max_moments: Largest number of bytes of second moments at once; None for no limit.
            factor_form: Form of the Kronecker factors of a metric.
        """

        def limited(network: Network) -> Network:
            return network.limited(max_batch, max_moments, factor_form)

        experts = [replace(e, network=limited(e.network)) for e in self]
        return replace(self, network=limited(self.network), experts=tuple(experts))

    def with_precision(self, precision: str) -> WeightSpace:
        """Return the same space with passes for derivatives and for targets in a precision.

        Args:
            precision: ``"float32"`` or ``"bfloat16"``.

        Raises:
            OptionError: If weights, device or code of the network allow no such passes.
        """
        experts = tuple(expert.with_precision(precision) for expert in self)
        return replace(self, network=self.network.with_precision(precision), experts=experts)
