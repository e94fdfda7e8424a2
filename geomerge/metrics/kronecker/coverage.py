"""Coverage of parameters by Kronecker blocks, norms, per-input copies, or a diagonal only."""

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
from geomerge.metrics.kronecker.tracing import Block, Product, ProductTracer
from geomerge.metrics.outputs import nearly_equal
from geomerge.networks.batches import Batch, concat, pass_to
from geomerge.networks.network import Network

__all__ = ["Coverage", "Lookup", "copies", "find_coverage"]

Span = tuple[int, int]


class Lookup(NamedTuple):
    """Call of an embedding for one input.

    Attributes:
        name: Name of the table.
        shape: Shape of the indices.
    """

    name: str
    shape: torch.Size


@dataclass(frozen=True)
class Coverage:
    """Roles of the parameters in a forward pass.

    Attributes:
        blocks: Names of the tensors of each block that a Kronecker layer can cover.
        norms: Axis of the inputs in the output of each norm that is applied once per input.
        normed: Names of the tensors that are used in those norms only, by their places.
        copied: Names of the tensors that may have another value for each input, such as class
            tokens and positions.
        lookups: Calls of embeddings in order, for tables without any other use.
        width: Count of activations per input, a measure of memory.
    """

    blocks: dict[Block, list[str]]
    norms: dict[Norm, int]
    normed: dict[Span, str]
    copied: list[str]
    lookups: list[Lookup]
    width: int

    def label(self, block: Block, network: Network) -> str:
        """Return the name of a block for reports: its module, or its weight with the rows."""
        weight, *bias = self.blocks[block]
        module = weight.removesuffix(".weight")
        place = network.slices[weight]
        if (block.start, block.stop) == (place.start, place.stop):
            plain = module != weight and bias in ([], [f"{module}.bias"])
            return module if plain else weight
        size = (block.stop - block.start) // block.rows
        row = (block.start - place.start) // size
        return f"{weight}[{row}:{row + block.rows}]"


def find_coverage(
    network: Network,
    w: Tensor,  # (n,)
    x: Batch,  # (1, ...)
) -> Coverage:
    """Trace passes of one and two inputs to find the role of each parameter.

    Args:
        network: Network to trace.
        w: Weights of the network.
        x: Batch of one input.

    Returns:
        The coverage. No block contains a weight that is used in overlapping blocks or in another
        way as well (an embedding tied to the last layer), that is used in part only, or that is
        applied to activations which do not exist once per input.
    """
    module = network.shared_module(w)
    single, double = _RoleTracer(w), _RoleTracer(w)
    with torch.no_grad():
        with single:
            pass_to(module, x)
        with double:
            pass_to(module, concat([x, x]))
    tables = {span for span, _ in single.lookups}
    uses = torch.zeros(network.n, dtype=torch.int16)
    norms = _input_axes(single.norms, double.norms)
    normed = {span for norm in norms for span in norm.spans()}
    single.others.update(s for norm, _ in single.norms if norm not in norms for s in norm.spans())
    factors = [span for block in single.rows for span in block.spans()]
    for start, stop in [*single.others, *tables, *normed, *factors]:
        uses[start:stop] += 1
    exclusive = [
        block
        for block, rows in single.rows.items()
        if double.rows[block] == 2 * rows
        and all(stop <= network.n_parameters for _, stop in block.spans())
        and all(int(uses[start:stop].max()) == 1 for start, stop in block.spans())
    ]
    names = {(place.start, place.stop): name for name, place in network.slices.items()}
    coverage = Coverage(
        _complete(network, {block: _names(network, block.spans()) for block in exclusive}),
        norms,
        {
            span: names[span]
            for span in normed
            if span in names and int(uses[slice(*span)].max()) == 1
        },
        [],
        [
            Lookup(_names(network, [table])[0], shape)
            for table, shape in single.lookups
            if int(uses[slice(*table)].max()) == 1
        ],
        single.width,
    )
    in_blocks = {name for names in coverage.blocks.values() for name in names}
    done = in_blocks.union(coverage.normed.values(), (lookup.name for lookup in coverage.lookups))
    others = [name for name in network.shapes if name not in done]
    return replace(coverage, copied=_copied(network, w, x, others))


def _input_axes(
    single: list[tuple[Norm, torch.Size]], double: list[tuple[Norm, torch.Size]]
) -> dict[Norm, int]:
    """Return the axis of the inputs for norms in which it is the same for all calls."""
    if [norm for norm, _ in single] != [norm for norm, _ in double]:
        return {}
    axes: dict[Norm, set[int | None]] = {}
    for (norm, small), (_, large) in zip(single, double, strict=True):
        grown = [i for i, sizes in enumerate(zip(small, large, strict=False)) if sizes == (1, 2)]
        axes.setdefault(norm, set()).add(grown[0] if len(grown) == 1 else None)
    agreed = ((norm, seen.pop()) for norm, seen in axes.items() if len(seen) == 1)
    return {norm: axis for norm, axis in agreed if axis is not None}


def copies(tensor: Tensor, count: int) -> Tensor:  # (count, ...)
    """Return copies of a tensor for all inputs, along its first axis if that has length one."""
    single = tensor if tensor.shape[:1] == (1,) else tensor.unsqueeze(0)
    return single.expand(count, *single.shape[1:])


def _copied(network: Network, w: Tensor, x: Batch, names: list[str]) -> list[str]:
    """Return the names of the tensors that may have another value for each input."""
    network.shared_module(w)
    fixed, two = network.unravel(w), concat([x, x])
    generator = torch.Generator().manual_seed(0)
    taken: dict[str, Tensor] = {}
    for name in names:
        # With another random change for each of two inputs, the outputs of each input must be
        # those of a pass of that input alone, and the two must differ.
        plain = copies(fixed[name], 2)
        moved = plain + torch.randn(plain.shape, generator=generator).to(w)
        with torch.no_grad():
            try:
                both = network.functional({**taken, name: moved}, two)
            except Exception:  # a network's own code raises any type
                continue
            each = torch.cat(
                [network.functional({name: t.view(fixed[name].shape)}, x) for t in moved]
            )
        if nearly_equal(both, each) and not nearly_equal(*each):
            taken[name] = plain
    return list(taken)


def _complete(network: Network, blocks: dict[Block, list[str]]) -> dict[Block, list[str]]:
    """Remove blocks of tensors that are not covered in full, until all are."""
    while True:
        covered = torch.zeros(network.n, dtype=torch.bool)
        for start, stop in (span for block in blocks for span in block.spans()):
            covered[start:stop] = True
        whole = {
            block: names
            for block, names in blocks.items()
            if all(bool(covered[network.slices[name]].all()) for name in names)
        }
        if len(whole) == len(blocks):
            return whole
        blocks = whole


def _names(network: Network, spans: list[Span]) -> list[str]:
    names = list(network.slices)
    starts = [place.start for place in network.slices.values()]
    return [names[bisect_right(starts, start) - 1] for start, _ in spans]


class _RoleTracer(ProductTracer):
    """Tracer that counts the uses of each parameter."""

    def __init__(self, w: Tensor) -> None:
        super().__init__(w, self._count, self._normed)
        self.rows: Counter[Block] = Counter()  # rows of activations per block
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
