"""Places of weights in steps: whole layers at their owners, rows of other weights where they are.

The step of a layer with Kronecker factors needs its whole gradient, and the process that owns the
layer has the only copy of the factors. One exchange among all processes brings the shards of
gradients to the owners, and one takes the steps back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from geomerge.metrics.kronecker.factor import decomposition_cost
from geomerge.networks.network import places
from geomerge.sharded.network import ShardedNetwork, rows_of

__all__ = ["Layout"]


class Layout:
    """Vector of a process: its own whole layers, then its rows of the weights with a diagonal.

    Owners are dealt by the costs of the layers' decompositions, the costliest first.

    Args:
        network: Network, whose forms are known.

    Attributes:
        owners: Process that owns each product of the network.
        n: Length of this process's vector.
        places: Place of each tensor in this process's vector, by name.
        shapes: Shape of each of these tensors here.
    """

    def __init__(self, network: ShardedNetwork) -> None:
        self._network, mates = network, network.mates
        self._mates = mates
        blocks = [form.block for form in network.products]
        costs = [decomposition_cost(b.width) + decomposition_cost(b.rows) for b in blocks]
        self.owners = mates.owners(costs)
        self._of: list[list[str]] = [[] for _ in range(mates.size)]
        for form, owner in zip(network.products, self.owners, strict=True):
            self._of[owner] += form.names
        self.shapes = {name: network.shapes[name] for name in self._of[mates.rank]}
        for name in network.diagonals:
            self.shapes[name] = network.shard(name).shape
        self.places = places(self.shapes)
        self.n = sum(shape.numel() for shape in self.shapes.values())

    @property
    def names(self) -> list[str]:
        """Names of the tensors with a metric, of all processes."""
        return [name for of_one in self._of for name in of_one] + self._network.diagonals

    def _size(self, name: str, rank: int) -> int:
        """Return the number of weights in a process's shard."""
        shape = self._network.shapes[name]
        start, stop = rows_of(shape[0], rank, self._mates.size)
        return (stop - start) * shape[1:].numel()

    def gathered(self, shards: Callable[[str], Tensor]) -> Tensor:  # (n,)
        """Return this process's vector of tensors that are held in shards.

        Args:
            shards: Function of a name that returns this process's rows.
        """
        rank, size = self._mates.rank, self._mates.size
        sent = [[shards(name).reshape(-1) for name in names] for names in self._of]
        given = [sum(map(len, parts)) for parts in sent]
        taken = [sum(self._size(name, s) for name in self._of[rank]) for s in range(size)]
        flat = torch.cat([part for parts in sent for part in parts])
        found = self._mates.exchange(flat, given, taken)
        del sent, flat
        v = found.new_empty(self.n)
        rows = {name: v[self.places[name]] for name in self._of[rank]}
        for s, parts in enumerate(found.split(taken)):
            sizes = [self._size(name, s) for name in self._of[rank]]
            for name, part in zip(self._of[rank], parts.split(sizes), strict=True):
                before = sum(self._size(name, r) for r in range(s))
                rows[name][before : before + len(part)] = part
        for name in self._network.diagonals:
            v[self.places[name]] = shards(name).reshape(-1)
        return v

    def returned(
        self,
        v: Tensor,  # (n,)
    ) -> Iterator[tuple[str, Tensor]]:  # (r, ...)
        """Yield each tensor's name, and this process's rows of it, of the vectors of all.

        Args:
            v: Vector of this process.
        """
        rank, size = self._mates.rank, self._mates.size
        own = self._of[rank]
        sizes = {name: [self._size(name, s) for s in range(size)] for name in own}
        parts = {name: v[self.places[name]].split(sizes[name]) for name in own}
        given = [sum(sizes[name][s] for name in own) for s in range(size)]
        taken = [sum(self._size(name, rank) for name in names) for names in self._of]
        flat = torch.cat([v.new_empty(0), *(parts[k][s] for s in range(size) for k in own)])
        found = self._mates.exchange(flat, given, taken)
        del flat, parts
        for names, theirs in zip(self._of, found.split(taken), strict=True):
            yield from self._shaped(names, theirs)
        first = min((self.places[k].start for k in self._network.diagonals), default=self.n)
        yield from self._shaped(self._network.diagonals, v[first:])

    def _shaped(self, names: Sequence[str], flat: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield this process's rows of some tensors that follow each other in a vector."""
        sizes = [self._size(name, self._mates.rank) for name in names]
        for name, part in zip(names, flat.split(sizes), strict=True):
            yield name, part.view(-1, *self._network.shapes[name][1:])
