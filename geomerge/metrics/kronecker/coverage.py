"""What the weights of a network serve in: products, norms, or something else."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from geomerge.metrics.kronecker.norms import Norm, Normed
from geomerge.metrics.kronecker.tracing import Block, Product, Products
from geomerge.networks.batches import Batch, concat, pass_to
from geomerge.networks.network import Network

__all__ = ["Lookup", "Survey", "copies", "survey"]

Span = tuple[int, int]


class Lookup(NamedTuple):
    """A call of an embedding for one input: whose table it reads, the shape of the indices."""

    name: str
    shape: torch.Size


@dataclass(frozen=True)
class Survey:
    """What a forward pass does with the weights.

    Attributes:
        blocks: Each block that a Kronecker layer can hold, and the names of its tensors.
        norms: Each norm applied once for every input, and which axis of its output has the inputs.
        normed: Tensors that serve in those only, by where they lie.
        copied: Tensors that the network takes just as well with a copy for every input: class
            tokens, positions.
        lookups: Calls of embeddings in order, where their tables serve nothing else.
        width: Activations held for one input, a measure of the memory it takes.
    """

    blocks: dict[Block, list[str]]
    norms: dict[Norm, int]
    normed: dict[Span, str]
    copied: list[str]
    lookups: list[Lookup]
    width: int

    def label(self, block: Block, network: Network) -> str:
        """Name a block for reports: its module, or the weight that no module holds alone."""
        weight, *bias = self.blocks[block]
        module = weight.removesuffix(".weight")
        place = network.slices[weight]
        if (block.start, block.stop) == (place.start, place.stop):
            plain = module != weight and bias in ([], [f"{module}.bias"])
            return module if plain else weight
        size = (block.stop - block.start) // block.rows
        row = (block.start - place.start) // size
        return f"{weight}[{row}:{row + block.rows}]"


def survey(
    network: Network,
    w: Tensor,  # (n,)
    x: Batch,  # (1, ...)
) -> Survey:
    """See what a network does with its weights.

    Args:
        network: The network.
        w: Its weights.
        x: One input.

    Returns:
        The survey. A weight is in no block if it serves in overlapping blocks or in another way
        too (an embedding tied to the last layer), if not all of its rows are used, or if it is
        applied to activations that are not there once for every input.
    """
    module = network.shared_module(w)
    one, two = _Watch(w), _Watch(w)
    with torch.no_grad():
        with one:
            pass_to(module, x)
        with two:
            pass_to(module, concat([x, x]))
    tables = {span for span, _ in one.lookups}
    uses = torch.zeros(network.n, dtype=torch.int16)
    norms = _axes(one.norms, two.norms)
    normed = {span for norm in norms for span in norm.spans()}
    one.others.update(s for norm, _ in one.norms if norm not in norms for s in norm.spans())
    factors = [span for block in one.rows for span in block.spans()]
    for start, stop in [*one.others, *tables, *normed, *factors]:
        uses[start:stop] += 1
    alone = [
        block
        for block, rows in one.rows.items()
        if two.rows[block] == 2 * rows
        and all(stop <= network.n_parameters for _, stop in block.spans())
        and all(int(uses[start:stop].max()) == 1 for start, stop in block.spans())
    ]
    names = {(place.start, place.stop): name for name, place in network.slices.items()}
    found = Survey(
        _whole(network, {block: _names(network, block.spans()) for block in alone}),
        norms,
        {
            span: names[span]
            for span in normed
            if span in names and int(uses[slice(*span)].max()) == 1
        },
        [],
        [
            Lookup(_names(network, [table])[0], shape)
            for table, shape in one.lookups
            if int(uses[slice(*table)].max()) == 1
        ],
        one.width,
    )
    in_blocks = {name for names in found.blocks.values() for name in names}
    done = in_blocks.union(found.normed.values(), (lookup.name for lookup in found.lookups))
    others = [name for name in network.shapes if name not in done]
    return replace(found, copied=_copied(network, w, x, others))


def _axes(
    one: list[tuple[Norm, torch.Size]], two: list[tuple[Norm, torch.Size]]
) -> dict[Norm, int]:
    """Return the axis that grows with the inputs, of norms where every call agrees on it."""
    if [norm for norm, _ in one] != [norm for norm, _ in two]:
        return {}
    axes: dict[Norm, set[int | None]] = {}
    for (norm, small), (_, large) in zip(one, two, strict=True):
        grown = [i for i, sizes in enumerate(zip(small, large, strict=False)) if sizes == (1, 2)]
        axes.setdefault(norm, set()).add(grown[0] if len(grown) == 1 else None)
    agreed = ((norm, found.pop()) for norm, found in axes.items() if len(found) == 1)
    return {norm: axis for norm, axis in agreed if axis is not None}


def copies(tensor: Tensor, count: int) -> Tensor:  # (count, ...)
    """Return a tensor once for every input; a first axis of one is where they go."""
    single = tensor if tensor.shape[:1] == (1,) else tensor.unsqueeze(0)
    return single.expand(count, *single.shape[1:])


def _copied(network: Network, w: Tensor, x: Batch, names: list[str]) -> list[str]:
    """Return the tensors of which each input can have its own copy."""
    network.shared_module(w)
    fixed, two = network.unravel(w), concat([x, x])
    generator = torch.Generator().manual_seed(0)
    taken: dict[str, Tensor] = {}
    for name in names:
        # Each of two inputs has its tensor moved another way: it must see that, and only that.
        plain = copies(fixed[name], 2)
        moved = plain + torch.randn(plain.shape, generator=generator).to(w)
        with torch.no_grad():
            try:
                both = network.functional({**taken, name: moved}, two)
            except Exception:  # whatever a network's own code raises at tensors of other shapes
                continue
            each = torch.cat(
                [network.functional({name: t.view(fixed[name].shape)}, x) for t in moved]
            )
        if _same(both, each) and not _same(*each):
            taken[name] = plain
    return list(taken)


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether two outputs differ by rounding alone."""
    rounding: float = torch.finfo(one.dtype).eps ** 0.5
    return float((one - other).norm()) <= rounding * float(other.norm())


def _whole(network: Network, blocks: dict[Block, list[str]]) -> dict[Block, list[str]]:
    """Leave out blocks that hold parts of tensors only; each may take others with it."""
    while True:
        held = torch.zeros(network.n, dtype=torch.bool)
        for start, stop in (span for block in blocks for span in block.spans()):
            held[start:stop] = True
        whole = {
            block: names
            for block, names in blocks.items()
            if all(bool(held[network.slices[name]].all()) for name in names)
        }
        if len(whole) == len(blocks):
            return whole
        blocks = whole


def _names(network: Network, spans: list[Span]) -> list[str]:
    names = list(network.slices)
    starts = [place.start for place in network.slices.values()]
    return [names[bisect_right(starts, start) - 1] for start, _ in spans]


class _Watch(Products):
    def __init__(self, w: Tensor) -> None:
        super().__init__(w, self._count, self._normed)
        self.rows: Counter[Block] = Counter()  # how often a pass applies each block
        self.norms: list[tuple[Norm, torch.Size]] = []
        self.lookups: list[tuple[Span, torch.Size]] = []
        self.others: set[Span] = set()
        self.width = 0

    def _count(self, product: Product, x: Tensor) -> None:
        self.rows[product.block] += product.out.numel() // product.block.rows
        self.width += product.out.numel()

    def _normed(self, normed: Normed) -> None:
        self.norms.append((normed.norm, normed.out.shape))
        self.width += normed.normal.numel()

    def other(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any
    ) -> None:
        table = args[1] if func is functional.embedding and len(args) > 1 else None
        if isinstance(table, nn.Parameter) and (span := self.span(table)) is not None:
            self.lookups.append((span, args[0].shape))
        elif any(self.span(tensor) is None for tensor in _tensors(out)):  # more than a view
            spans = (self.span(tensor) for tensor in _tensors([args, kwargs]))
            self.others.update(span for span in spans if span is not None)


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for branch in tree:
            yield from _tensors(branch)
    elif isinstance(tree, Mapping):
        yield from _tensors(list(tree.values()))
