"""Coverage of weights by Kronecker blocks, or by per-input derivatives of single operations."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from geomerge.metrics.kronecker.norms import Norm, Normed
from geomerge.metrics.kronecker.products import Block, Product
from geomerge.metrics.kronecker.tracing import Tracer
from geomerge.metrics.kronecker.uses import Local, Lookup, batch_axis
from geomerge.metrics.linearisation import differentiable
from geomerge.metrics.outputs import nearly_equal
from geomerge.networks.batches import Batch, batch_size, concat, leaves
from geomerge.networks.network import Network

__all__ = ["Coverage", "copies", "find_coverage", "graph_of"]

_SIGNED = 6  # numbers held per logit of a language model

Span = tuple[int, int]
Key = tuple[Any, ...]


@dataclass
class Coverage:
    """Forms of the metric for the weights of a network, by their use in a forward pass.

    Attributes:
        blocks: Names of the tensors of each block that can have Kronecker factors.
        norms: Batch axis in the output of each norm.
        normed: Names of the tensors of each norm.
        lookups: Batch axis in the lookups of each table.
        locals: Batch axes in the activations and the output of each local operation.
        copied: Names of the tensors that can be expanded to one value per input, such as class
            tokens.
        one_by_one: Names of the tensors that need derivatives of the whole network for each input.
        graphed: Names of the tensors that are used through tensors computed from them.
        width: Number of activations per input, for estimates of memory.
    """

    blocks: dict[Block, list[str]] = field(default_factory=dict)
    norms: dict[Norm, int] = field(default_factory=dict)
    normed: dict[Span, str] = field(default_factory=dict)
    lookups: dict[str, int] = field(default_factory=dict)
    locals: dict[Key, tuple[int | None, ...]] = field(default_factory=dict)
    copied: list[str] = field(default_factory=list)
    one_by_one: list[str] = field(default_factory=list)
    graphed: set[str] = field(default_factory=set)
    width: int = 0

    def of(self, network: Network, names: frozenset[str]) -> Coverage:
        """Return the forms for some of the weights alone.

        Args:
            network: The network.
            names: Names of tensors of which any part is wanted.
        """
        return replace(
            self,
            blocks={k: own for k, own in self.blocks.items() if names & set(own)},
            norms={
                norm: axis
                for norm, axis in self.norms.items()
                if names & set(_names(network, norm.spans()))
            },
            lookups={name: axis for name, axis in self.lookups.items() if name in names},
            locals={key: axes for key, axes in self.locals.items() if names & _weights_of(key)},
            copied=[name for name in self.copied if name in names],
            one_by_one=[name for name in self.one_by_one if name in names],
        )

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
    """Trace passes of one and two inputs to find the form of the metric for each weight.

    Args:
        network: Network to trace.
        w: Weights of the network.
        x: Batch of one input.

    Returns:
        The coverage. Blocks exclude weights that are used in overlapping blocks, also in other
        operations (an embedding tied to the last layer), only in part, or on activations without a
        batch axis.
    """
    network = network.with_precision("float32")  # forms are the same, and rounding hides them
    found = Coverage()
    static: set[str] = set()
    while True:
        single, double = (_traced(network, w, batch, static) for batch in (x, concat([x, x])))
        lookups, same = _lookup_axes(single, double)
        if same <= static:
            break
        static |= same
    found.width = single.width
    found.blocks, refused = _blocks(network, single, double)
    found.norms = _norm_axes(single, double)
    if refused or single.norms.keys() - found.norms.keys():  # treated as local operations
        single, double = (
            _traced(network, w, batch, static, found) for batch in (x, concat([x, x]))
        )
        lookups, _ = _lookup_axes(single, double)
    found.locals = _local_axes(single, double)
    found.lookups = lookups
    spans = {(place.start, place.stop): name for name, place in network.slices.items()}
    found.normed = {s: spans[s] for norm in found.norms for s in norm.spans() if s in spans}
    _settle(network, w, x, found, double)
    return found


class _Traced:
    """Observer that records the uses of the weights in one pass."""

    def __init__(self, static: set[str], known: Coverage | None) -> None:
        self._static, self._known = static, known
        self.rows: Counter[Block] = Counter()  # rows of activations per block
        self.names: dict[Block, set[str]] = {}
        self.norms: dict[Norm, list[Tensor]] = {}
        self.lookups: dict[str, list[Lookup]] = {}
        self.locals: dict[Key, list[Local]] = {}
        self.others: set[str] = set()
        self.width = 0

    def product(self, product: Product, name: str) -> bool:
        known = self._known
        if not product.call.in_blocks:
            return False
        if known is not None and any(block not in known.blocks for block in product.blocks):
            return False
        for block in product.blocks:
            self.rows[block] += product.count
            self.names.setdefault(block, set()).add(name)
        self.width += product.out.numel()
        return True

    def norm(self, normed: Normed) -> bool:
        if self._known is not None and normed.norm not in self._known.norms:
            return False
        self.norms.setdefault(normed.norm, []).append(normed.out)
        self.width += normed.normal.numel()
        return True

    def lookup(self, lookup: Lookup) -> bool:
        if lookup.name in self._static:
            return False
        self.lookups.setdefault(lookup.name, []).append(lookup)
        return True

    def local(self, local: Local) -> None:
        self.locals.setdefault(local.key, []).append(local)
        self.width += local.out.numel()

    def other(self, names: frozenset[str]) -> None:
        self.others.update(names)

    def names_used(self, network: Network) -> set[str]:
        """Return the names of the weights that are used otherwise than in products."""
        locals_ = {name for key in self.locals for name in _weights_of(key)}
        normed = {name for norm in self.norms for name in _names(network, norm.spans())}
        return self.others | locals_ | normed | set(self.lookups)


@contextmanager
def graph_of(network: Network, names: set[str]) -> Iterator[None]:
    """Record an autograd graph for tensors computed from some weights, inside the context.

    Args:
        network: Network whose module computes.
        names: Names of the weights.
    """
    module = network.module
    tensors = dict([*module.named_parameters(), *module.named_buffers()])
    for name in names:
        tensors[name].requires_grad_(True)
    try:
        yield
    finally:
        for name in names:
            tensors[name].requires_grad_(False)


def _traced(
    network: Network, w: Tensor, x: Batch, static: set[str], known: Coverage | None = None
) -> _Traced:
    module = network.shared_module(w)
    seen = _Traced(static, known)
    with torch.enable_grad(), Tracer(network, w, leaves(x), seen):
        logits = network.call(module, x)
    if len(logits) > batch_size(x):  # one row of logits per token, with sign vectors
        seen.width += _SIGNED * logits.numel()
    return seen


def _lookup_axes(single: _Traced, double: _Traced) -> tuple[dict[str, int], set[str]]:
    """Return the batch axis in the lookups of tables, and the tables without a batch axis."""
    axes: dict[str, int] = {}
    same: set[str] = set()
    for name, calls in single.lookups.items():
        others = double.lookups.get(name, [])
        found = {batch_axis(one.ids, two.ids) for one, two in zip(calls, others, strict=False)}
        if found == {(None, True)}:
            same.add(name)
            continue
        (axis, known), *more = found
        if len(calls) != len(others) or more or not known or axis is None:
            double.others.add(name)
        else:
            axes[name] = axis
    return axes, same


def _blocks(
    network: Network, single: _Traced, double: _Traced
) -> tuple[dict[Block, list[str]], set[str]]:
    """Return the blocks that can have factors, and the names of other weights in products."""
    uses = torch.zeros(network.n, dtype=torch.int16)
    for name in single.names_used(network):
        uses[network.slices[name]] += 1
    for start, stop in [span for block in single.rows for span in block.spans()]:
        uses[start:stop] += 1
    exclusive = [
        block
        for block, rows in single.rows.items()
        if double.rows[block] == 2 * rows
        and all(stop <= network.n_parameters for _, stop in block.spans())
        and all(int(uses[start:stop].max()) == 1 for start, stop in block.spans())
    ]
    blocks = _complete(network, {block: _names(network, block.spans()) for block in exclusive})
    refused = {name for block in single.rows if block not in blocks for name in single.names[block]}
    return blocks, refused


def _weights_of(key: Key) -> set[str]:
    return {name for _, names in key[1:-1] for name in names}


def _norm_axes(single: _Traced, double: _Traced) -> dict[Norm, int]:
    """Return the batch axis of each norm whose calls all have the same one."""
    axes: dict[Norm, int] = {}
    for norm, outs in single.norms.items():
        others = double.norms.get(norm, [])
        if len(outs) != len(others):
            continue
        found = set()
        for one, two in zip(outs, others, strict=True):
            grown = [
                i for i, sizes in enumerate(zip(one.shape, two.shape, strict=False))
                if sizes == (1, 2)
            ]  # fmt: skip
            found.add(grown[0] if len(grown) == 1 else None)
        axis = found.pop()
        if axis is not None and not found:
            axes[norm] = axis
    return axes


def _local_axes(single: _Traced, double: _Traced) -> dict[Key, tuple[int | None, ...]]:
    """Return the batch axes in the activations and outputs of local operations."""
    axes: dict[Key, tuple[int | None, ...]] = {}
    for key, calls in single.locals.items():
        others = double.locals.get(key, [])
        found: set[tuple[int | None, ...] | None] = set()
        for one, two in zip(calls, others, strict=False):
            own: list[int | None] = []
            for t, u in [
                *((one.flat[i], two.flat[i]) for i in [*one.activations]),
                (one.out, two.out),
            ]:
                axis, known = batch_axis(t, u)
                own.append(axis if known else -1)
            fixed = all(one.flat[i].shape == two.flat[i].shape for i in one.weights)
            good = fixed and -1 not in own and own[-1] is not None
            found.add(tuple(own) if good else None)
        if len(calls) == len(others) and len(found) == 1 and None not in found:
            axes[key] = found.pop() or ()
    return axes


def _settle(network: Network, w: Tensor, x: Batch, found: Coverage, seen: _Traced) -> None:
    """Remove forms that do not work, and find the names that are left without a cheaper form."""
    in_blocks = {name for names in found.blocks.values() for name in names}
    bad = set(seen.others) | _unseen(network, w, x, in_blocks | seen.names_used(network))
    bad.update(name for key in seen.locals if key not in found.locals for name in _weights_of(key))
    bad.update(name for key in found.locals if not _works(seen.locals[key], found.locals[key])
               for name in _weights_of(key))  # fmt: skip
    bad.update(set(seen.lookups) - set(found.lookups))
    bad.update(
        name
        for norm in seen.norms if norm not in found.norms
        for name in _names(network, norm.spans())
    )  # fmt: skip
    spans = [(place.start, place.stop) for place in network.slices.values()]
    bad.update(
        name
        for norm in found.norms
        for span, name in zip(norm.spans(), _names(network, norm.spans()), strict=True)
        if span not in spans
    )
    found.copied = _copied(network, w, x, sorted(bad))
    # Weights from which one tensor is computed have the same form.
    grown = True
    while grown:
        grown = False
        for key in seen.locals:
            for _, names in key[1:-1]:
                if set(names) & bad and not set(names) <= bad:
                    bad.update(names)
                    grown = True
    found.one_by_one = [k for k in network.shapes if k in bad - {*found.copied} - in_blocks]
    found.locals = {key: axes for key, axes in found.locals.items() if _weights_of(key) - bad}
    found.lookups = {name: axis for name, axis in found.lookups.items() if name not in bad}
    found.normed = {span: name for span, name in found.normed.items() if name not in bad}
    found.graphed = {
        name
        for key in found.locals
        for call in seen.locals[key]
        for whole, (_, names) in zip(call.whole, key[1:-1], strict=True)
        if not whole
        for name in names
    } - bad


def _works(calls: list[Local], axes: tuple[int | None, ...]) -> bool:
    """Return whether per-input derivatives of a local operation sum to its derivative."""
    generator = torch.Generator().manual_seed(0)
    for call in calls[:1]:
        d = torch.randn(call.out.shape, generator=generator).to(call.out)
        with differentiable(), torch.enable_grad():
            try:
                each = call.derivatives(d, axes, 2, slice(0, 2))
                flat = list(call.flat)
                for i in call.weights:
                    flat[i] = flat[i].detach().requires_grad_()
                whole = torch.autograd.grad(call.run(flat), [flat[i] for i in call.weights], d)
            except Exception:  # operations without such derivatives raise errors of any type
                return False
        if not all(nearly_equal(e.sum(0), g, 1e-3) for e, g in zip(each, whole, strict=True)):
            return False
    return True


def _unseen(network: Network, w: Tensor, x: Batch, known: set[str]) -> set[str]:
    """Return the names of weights that affect the outputs without any traced operation."""
    names = [name for name in network.shapes if name not in known]
    if not names:
        return set()
    tensors = {k: t.detach().requires_grad_(k in names) for k, t in network.unravel(w).items()}
    with differentiable(), torch.enable_grad():
        out = network.functional(tensors, x)
        if not out.requires_grad:
            return set()
        found = torch.autograd.grad(out.sum(), [tensors[k] for k in names], allow_unused=True)
    return {name for name, d in zip(names, found, strict=True) if d is not None}


def copies(tensor: Tensor, count: int) -> Tensor:  # (count, ...)
    """Expand a tensor to ``count`` inputs, along its first axis if that has length one."""
    single = tensor if tensor.shape[:1] == (1,) else tensor.unsqueeze(0)
    return single.expand(count, *single.shape[1:])


def _copied(network: Network, w: Tensor, x: Batch, names: list[str]) -> list[str]:
    """Return the names of the tensors that can be expanded to one value per input."""
    network.shared_module(w)
    fixed, two = network.unravel(w), concat([x, x])
    generator = torch.Generator().manual_seed(0)
    taken: dict[str, Tensor] = {}
    for name in names:
        # With different random changes for two inputs, the outputs of each must equal those of its
        # own pass, and the two must differ.
        plain = copies(fixed[name], 2)
        moved = plain + torch.randn(plain.shape, generator=generator).to(w)
        with torch.no_grad():
            try:
                both = network.functional({**taken, name: moved}, two)
            except Exception:  # a network's code can raise errors of any type
                continue
            each = torch.cat(
                [network.functional({name: t.view(fixed[name].shape)}, x) for t in moved]
            )
        if nearly_equal(both, each) and not nearly_equal(*each):
            taken[name] = plain
    return list(taken)


def _complete(network: Network, blocks: dict[Block, list[str]]) -> dict[Block, list[str]]:
    """Remove blocks with tensors that are not fully covered, until there are none."""
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
