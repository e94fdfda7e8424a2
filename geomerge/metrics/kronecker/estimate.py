"""Estimation of a network's Kronecker factors by passes over inputs."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from geomerge.errors import NumericalError
from geomerge.io import paged
from geomerge.metrics.kronecker.coverage import Coverage, copies, find_coverage, graph_of
from geomerge.metrics.kronecker.diagonal import at_tokens, squared_derivatives
from geomerge.metrics.kronecker.diagonal_layer import DiagonalFactor
from geomerge.metrics.kronecker.factor import Factor, Moments, moment_bytes
from geomerge.metrics.kronecker.forms import (
    Squares,
    cuts,
    diagonal_layer,
    files_of,
    hold,
    split_layer,
)
from geomerge.metrics.kronecker.layer import KroneckerLayer
from geomerge.metrics.kronecker.metric import KroneckerMetric
from geomerge.metrics.kronecker.norms import Normed
from geomerge.metrics.kronecker.products import Block, Product
from geomerge.metrics.kronecker.shared import shared_factors
from geomerge.metrics.kronecker.tracing import Tracer
from geomerge.metrics.kronecker.uses import Local, Lookup, rows_squared
from geomerge.metrics.outputs import output_map
from geomerge.networks.batches import Batch, batch_size, leaves, split, take
from geomerge.networks.factor_form import FactorForm
from geomerge.networks.network import Network
from geomerge.processes import Team, team

__all__ = [
    "KroneckerSums",
    "block_widths",
    "drawn_signs",
    "estimate_kronecker",
    "parts_of",
    "sign_vectors",
]

Sums: TypeAlias = "dict[tuple[Block, int], Moments | Squares]"  # by block and diagonal block
Factors: TypeAlias = dict[Block, tuple[list[Factor], list[Factor]]]

_ELEMENTS = 2**26  # activations or derivatives held at a time: 256 MiB in float32
_RANKED = 1024  # number of largest outputs that are sorted


def estimate_kronecker(
    network: Network,
    w: Tensor,  # (n,)
    batches: Iterable[Batch],
    output: str = "hellinger",
    seed: int = 0,
    sign_vectors: int | None = 2,
    names: Collection[str] | None = None,
) -> KroneckerMetric:
    """Measure the Kronecker metric of a network at w.

    Args:
        network: Network to measure.
        w: Weights at which to measure.
        batches: Batches of inputs, shape (B, ...). With a limit on the network's second moments at
            once they are iterated over several times, and once more where memory does not suffice
            for a pass; an iterator is used once, without a limit.
        output: Name of the output map, one of :data:`~geomerge.metrics.outputs.OUTPUTS`.
        seed: Seed of the random sign vectors.
        sign_vectors: Number of random sign vectors, each of which takes a backward pass. They
            replace the outputs without changing the expectation. Two are as good as all outputs for
            walks; one is not if there are few inputs. None uses every output.
        names: Names of the tensors of which a metric is wanted, without which backward passes go
            through all layers; None is all.

    Returns:
        The metric, in the type of w, as a mean over inputs, or over tokens of a language model's
        texts. Decompositions are in float64.

    Raises:
        NumericalError: If activations or gradients are not finite, or there are no inputs.
        OptionError: If memory does not suffice for a pass of one input.
    """
    iterator = iter(batches)
    once, first = iterator is batches, next(iterator, None)
    if first is None or batch_size(first) == 0:
        raise NumericalError("there are no `inputs` to measure a metric on; give at least one")
    coverage = find_coverage(network, w, take(first, slice(0, 1)))
    if names is not None:
        coverage = coverage.of(network, frozenset(names))
    factors: Factors = {}
    most = None if once else network.max_moments
    parts = parts_of(coverage, most, network.factor_form)
    form = network.factor_form
    store = files_of(form)
    if once:
        batches = chain([first], iterator)
    del first  # not to be held in all passes
    for part in parts:
        sums = KroneckerSums(network, w, output, coverage, sign_vectors, names=names)
        sums.blocks, sums.diagonals = part, part is parts[0]
        if once:
            count = _count(sums, batches, seed, sums.batch)
        else:
            attempt = partial(_counted_anew, sums, batches, seed)
            count = network.room.passed(sums.batch, attempt, sums.largest_pass)
        found = sums.factors(count, team())
        paged.trim()  # the C library keeps freed sums
        for block in list(found):
            a, b = ([hold(f, form, store) for f in side] for side in found.pop(block))
            factors[block] = (a, b)
            if form is not FactorForm.WHOLE:
                paged.trim()
        if sums.diagonals:
            rest = [sums.diagonal[name].reshape(-1) / sums.predictions for name in sums.rest]
    return KroneckerMetric(
        network.n,
        tuple(
            layer
            for block, of_block in factors.items()
            for layer in _layers(block, coverage.label(block, network), *of_block)
        ),
        tuple(network.slices[k] for k in sums.rest),
        torch.cat(rest).to(w.dtype) if rest else w.new_zeros(0),
        tuple(sums.rest),
        tuple(coverage.one_by_one),
    )


def parts_of(
    coverage: Coverage, most: int | None, form: FactorForm = FactorForm.WHOLE
) -> list[frozenset[Block]]:
    """Return a network's blocks in the parts that are measured one after the other.

    Args:
        coverage: Forms of the metric for the weights.
        most: Bytes of the second moments of a part, unless it is a single block; None for no limit.
        form: Form of the factors.
    """
    if most is None:
        return [frozenset(coverage.blocks)]
    parts: list[set[Block]] = [set()]
    room = most
    for block in coverage.blocks:
        both = [place for width in (block.width, block.rows) for place in cuts(width, form)]
        size = sum(moment_bytes(place.stop - place.start) for place in both)
        if size > room and parts[-1]:
            parts.append(set())
            room = most
        parts[-1].add(block)
        room -= size
    return [frozenset(part) for part in parts]


def _counted_anew(sums: KroneckerSums, batches: Iterable[Batch], seed: int, most: int) -> int:
    """Add all inputs to sums, from which what a failed pass left is removed."""
    sums.clear()
    return _count(sums, batches, seed, most)


def _count(sums: KroneckerSums, batches: Iterable[Batch], seed: int, most: int) -> int:
    """Add all inputs to sums in passes of at most so many, and return their number.

    Processes share batches of one size, whatever the size of the passes that memory lets each make.
    """
    generator = torch.Generator().manual_seed(seed)
    mates, passes, count = team(), 0, 0
    for batch in batches:
        count += batch_size(batch)
        for x in split(batch, sums.batch):
            if mates is None or mates.owns(passes):
                for own in split(x, most):
                    sums.add(own, generator)
            else:
                sums.skip(x, generator)
            passes += 1
    return count


def _layers(
    block: Block, name: str, inputs: Sequence[Factor], outputs: Sequence[Factor]
) -> list[KroneckerLayer]:
    """Return the layers of a block's factors, of their diagonal blocks, or of their diagonals."""
    weight = slice(block.start, block.stop)
    bias = None if block.bias is None else slice(block.bias, block.bias + block.rows)
    whole = KroneckerLayer(name, weight, bias, inputs[0], outputs[0], transposed=block.transposed)
    if isinstance(inputs[0], DiagonalFactor):
        return [diagonal_layer(whole)]
    return split_layer(whole, inputs, outputs)


class _Seen:
    """Observer that collects the uses of weights whose output gradients are needed."""

    def __init__(self, coverage: Coverage, add: Callable[[Product], None]) -> None:
        self._coverage, self._add = coverage, add
        self.products: list[Product] = []
        self.norms: list[Normed] = []
        self.lookups: list[Lookup] = []
        self.locals: list[Local] = []

    def product(self, product: Product, name: str) -> bool:
        if any(block not in self._coverage.blocks for block in product.blocks):
            return False
        self._add(product)
        product.out.requires_grad_()  # also in the first layer
        self.products.append(product)
        return True

    def norm(self, normed: Normed) -> bool:
        if normed.norm not in self._coverage.norms:
            return False
        normed.out.requires_grad_()
        self.norms.append(normed)
        return True

    def lookup(self, lookup: Lookup) -> bool:
        if lookup.name not in self._coverage.lookups:
            return False
        lookup.out.requires_grad_()
        self.lookups.append(lookup)
        return True

    def local(self, local: Local) -> None:
        if local.key in self._coverage.locals:
            local.out.requires_grad_()
            self.locals.append(local)

    def other(self, names: frozenset[str]) -> None:
        """Ignore these weights: they need derivatives of the whole network."""

    @property
    def outs(self) -> list[Tensor]:
        """Outputs of all uses, ordered by kind."""
        outs = [product.out for product in self.products] + [norm.out for norm in self.norms]
        outs += [lookup.out for lookup in self.lookups]
        return outs + [local.out for local in self.locals]


class KroneckerSums:
    """Sums of moments and squared derivatives over inputs.

    Args:
        network: Network to measure.
        w: Weights at which to measure, shape (n,).
        output: Name of the output map.
        coverage: Forms of the metric for the weights.
        sign_vectors: Number of random sign vectors; None uses every output.
        held: Whether to keep the sums of moments; False only serves to time a pass.
        names: Names of the tensors of which a metric is wanted; None is all.

    Attributes:
        batch: Largest number of inputs per pass.
        blocks: Blocks whose moments are added; by default all.
        diagonals: Whether squared derivatives are added.
        predictions: Number of rows of outputs added so far.
    """

    def __init__(
        self,
        network: Network,
        w: Tensor,  # (n,)
        output: str,
        coverage: Coverage,
        sign_vectors: int | None,
        held: bool = True,
        names: Collection[str] | None = None,
    ) -> None:
        self._held = held
        self.network, self.w, self.output, self.coverage = network, w, output, coverage
        self.sign_vectors = sign_vectors
        in_blocks = {name for names in coverage.blocks.values() for name in names}
        wanted = network.shapes if names is None else names
        self.rest = [name for name in network.shapes if name in wanted and name not in in_blocks]
        most = network.max_batch or _ELEMENTS
        self.batch = max(1, min(_ELEMENTS // max(coverage.width, 1), most))
        self.blocks: Collection[Block] = coverage.blocks
        self.diagonals = True
        self.inputs: Sums = {}  # moments of the blocks' inputs
        self.outputs: Sums = {}  # moments of the gradients at the blocks' outputs
        self.diagonal: dict[str, Tensor] = {}
        self.clear()

    def clear(self) -> None:
        """Begin with sums of no inputs."""
        self.predictions = self._largest = 0
        self.inputs.clear()
        self.outputs.clear()
        self.diagonal = {
            name: self.w.new_zeros(self.network.shapes[name], dtype=torch.float64)
            for name in self.rest
        }

    def largest_pass(self) -> int:
        """Return the number of inputs of the largest pass, finished or not."""
        return self._largest

    def add(
        self,
        x: Batch,  # (B, ...)
        generator: torch.Generator,
    ) -> None:
        """Add a batch of inputs."""
        self._largest = max(self._largest, batch_size(x))
        signs = self._add_gradients(x, generator)
        names = self.coverage.one_by_one
        if not names or not self.diagonals:
            return
        count = sum(self.network.shapes[name].numel() for name in names)
        most = max(1, _ELEMENTS // (signs.shape[1] * (count + self.coverage.width)))
        signs = at_tokens(signs, x)
        for part, rows in zip(split(x, most), signs.split(most), strict=True):
            found = squared_derivatives(self.network, self.w, names, part, rows, self.output)
            self._add_squares(found)

    def skip(
        self,
        x: Batch,  # (B, ...)
        generator: torch.Generator,
    ) -> None:
        """Skip a batch that another process adds, but draw its random signs."""
        # Texts have one row of outputs per token, so that their number requires a pass.
        logits = self.network.logits(self.w, take(x, slice(0, 1)))
        several = len(logits) > 1
        rows = len(self.network.logits(self.w, x)) if several else batch_size(x)
        outputs = output_map(logits, self.output).shape[1]
        if self.sign_vectors is not None and self.sign_vectors < outputs:
            drawn_signs(rows, outputs, generator)

    def factors(self, count: int, mates: Team | None) -> Factors:
        """Return the factors of every block as means over inputs, and free the sums.

        Args:
            count: Number of inputs.
            mates: Processes over whose inputs the sums are reduced; None for a single process.

        Returns:
            The diagonal blocks of A and those of B, of each block.
        """
        self._exchange(mates)
        if self.network.factor_form is FactorForm.DIAGONAL:
            return dict(self._squares(count, mates))
        sides = [(block, self.inputs, block.width) for block in self._measured_blocks]
        sides += [(block, self.outputs, block.rows) for block in self._measured_blocks]
        places = [
            (block, of, k, place.stop - place.start)
            for block, of, width in sides
            for k, place in enumerate(cuts(width, self.network.factor_form))
        ]
        moments = [self._taken(of, block, k) for block, of, k, _ in places]
        counts = [self.predictions if of is self.inputs else count for _, of, *_ in places]
        widths = [width for *_, width in places]
        made = shared_factors(moments, widths, counts, self.w, mates)
        found: Factors = {}
        for (block, of, *_), factor in zip(places, made, strict=True):
            found.setdefault(block, ([], []))[of is self.outputs].append(factor)
        return found

    def _taken(self, of: Sums, block: Block, k: int) -> Moments:
        """Return the sum of a diagonal block, which is not held here any more."""
        own = of.pop((block, k), None)
        return own if isinstance(own, Moments) else Moments()

    def _squares(
        self, count: int, mates: Team | None
    ) -> Iterator[tuple[Block, tuple[list[Factor], list[Factor]]]]:
        """Yield every block with the diagonals of its factors."""
        for block in self._measured_blocks:
            pair = []
            for of, width in ((self.inputs, block.width), (self.outputs, block.rows)):
                own = of.get((block, 0))
                total = own.total if isinstance(own, Squares) else None
                pair.append(self.w.new_zeros(width).double() if total is None else total)
            if mates is not None:
                mates.add(pair)
            a, b = pair[0] / self.predictions, pair[1] / count
            yield block, ([DiagonalFactor(a.to(self.w))], [DiagonalFactor(b.to(self.w))])

    def _exchange(self, mates: Team | None) -> None:
        """Reduce the number of predictions and the squared derivatives over processes."""
        if mates is not None:
            predictions = torch.tensor([self.predictions], device=self.w.device)
            mates.add([predictions])
            self.predictions = int(predictions)
            mates.add(list(self.diagonal.values()))

    @property
    def _measured_blocks(self) -> list[Block]:
        """Blocks in the order of their sums; in a process without any inputs, of the network."""
        seen = dict.fromkeys(block for block, _ in self.inputs)
        return list(seen or [b for b in self.coverage.blocks if b in self.blocks])

    def _add_gradients(self, x: Batch, generator: torch.Generator) -> Tensor:  # (R, P, m)
        """Add the sums that use gradients at activations, and return the sign vectors."""
        count = batch_size(x)
        with graph_of(self.network, self.coverage.graphed):
            seen, own, phi = self._forward(x)
            signs = _signs(phi, self.sign_vectors, generator)
            if len(phi) > count and self.sign_vectors is None:  # products between tokens cancel
                turns = torch.randint(0, 2, (*phi.shape, 1), generator=generator)
                signs = signs * (2 * turns - 1).to(signs)
            self.predictions += len(phi)
            rows: Counter[Block] = Counter()  # rows of activations per block
            for product in seen.products:
                for block in product.blocks:
                    rows[block] += product.count
            at = [*seen.outs, *own.values()]
            for i in range(signs.shape[1] if at else 0):
                gradients = torch.autograd.grad(
                    phi,
                    at,
                    signs[:, i],
                    retain_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                )
                for product, d in zip(seen.products, gradients, strict=False):
                    for k, block in enumerate(product.blocks):
                        if block not in self.blocks:
                            continue
                        found, share = product.outputs(d, k)
                        self._add_rows(self.outputs, block, found, share * count / rows[block])
                if self.diagonals:
                    self._add_at_once(seen, own, gradients[len(seen.products) :], count)
        return signs

    def _add_at_once(
        self,
        seen: _Seen,
        own: dict[str, Tensor],  # (B, ...)
        gradients: Sequence[Tensor],
        count: int,
    ) -> None:
        """Add squared per-input derivatives of operations that take weights."""
        norms, places = self.coverage.norms, self.coverage.normed
        of_norms, of_lookups, of_locals, of_own = _parted(
            gradients, len(seen.norms), len(seen.lookups), len(seen.locals)
        )
        dense = {name for local in seen.locals for _, names in local.key[1:-1] for name in names}
        alone = {lookup.name: lookup.size for lookup in seen.lookups if lookup.name not in dense}
        everything = slice(0, count)
        for name, size in alone.items():
            parts = [
                lookup.parts(d, self.coverage.lookups[name], count, everything)
                for lookup, d in zip(seen.lookups, of_lookups, strict=True)
                if lookup.name == name
            ]
            self._add_squares({name: rows_squared(parts, size)})
        largest = sum(self.network.shapes[name].numel() for name in {*places.values(), *dense})
        for start in range(0, count, most := max(1, _ELEMENTS // max(largest, 1))):
            chunk = slice(start, min(start + most, count))
            by_name = {k: d[chunk].flatten(1) for k, d in zip(own, of_own, strict=True)}

            def add(name: str, part: Tensor, by_name: dict[str, Tensor] = by_name) -> None:
                by_name[name] = by_name[name] + part if name in by_name else part

            for normed, d in zip(seen.norms, of_norms, strict=True):
                axis = norms[normed.norm]
                for span, part in normed.derivatives(d, axis, chunk):
                    if span in places:
                        add(places[span], part)
            for lookup, d in zip(seen.lookups, of_lookups, strict=True):
                if lookup.name in dense:
                    axis = self.coverage.lookups[lookup.name]
                    add(lookup.name, lookup.derivatives(d, axis, count, chunk))
            for local, d in zip(seen.locals, of_locals, strict=True):
                found = local.derivatives(d, self.coverage.locals[local.key], count, chunk)
                for name, part in self._pulled(local, found):
                    add(name, part)
            self._add_squares({k: d.double().square().sum(dim=0) for k, d in by_name.items()})

    def _pulled(
        self, local: Local, found: Sequence[Tensor]
    ) -> Iterator[tuple[str, Tensor]]:  # (b, size)
        """Propagate an operation's derivatives to the weights its tensors are computed from."""
        tensors: dict[str, Tensor] | None = None
        for i, whole, (_, names), d in zip(
            local.weights, local.whole, local.key[1:-1], found, strict=True
        ):
            if whole:
                yield names[0], d.flatten(1)
                continue
            if tensors is None:
                module = self.network.module
                tensors = dict([*module.named_parameters(), *module.named_buffers()])
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop")
                pulled = torch.autograd.grad(
                    local.flat[i], [tensors[name] for name in names], d.to(local.flat[i]),
                    retain_graph=True, is_grads_batched=True, allow_unused=True,
                )  # fmt: skip
            for name, part in zip(names, pulled, strict=True):
                if part is not None:
                    yield name, part.flatten(1)

    def _forward(self, x: Batch) -> tuple[_Seen, dict[str, Tensor], Tensor]:
        """Return the uses of weights, the tensors expanded to inputs, and the outputs."""

        def add(product: Product) -> None:
            for k, block in enumerate(product.blocks):
                if block in self.blocks:
                    self._add_rows(self.inputs, block, *product.inputs(k))

        self.network.shared_module(self.w)
        tensors = self.network.unravel(self.w)
        own = {k: copies(tensors[k], batch_size(x)).clone() for k in self.coverage.copied}
        for tensor in own.values():
            tensor.requires_grad_()
        seen = _Seen(self.coverage, add)
        active = [*leaves(x), *own.values()]
        with torch.enable_grad(), Tracer(self.network, self.w, active, seen):
            phi = output_map(self.network.functional(own, x), self.output)
        return seen, own, phi

    def _add_rows(
        self,
        to: Sums,
        block: Block,
        rows: Tensor,  # (R, d)
        share: float,
    ) -> None:
        """Add rows to the sums of a block's inputs or outputs, in the form of the factors."""
        form = self.network.factor_form
        if form is FactorForm.DIAGONAL:
            to.setdefault((block, 0), Squares()).add(rows, share)
            return
        for k, place in enumerate(cuts(rows.shape[1], form)):
            own = to.setdefault((block, k), Moments()) if self._held else Moments(held=False)
            own.add(rows[:, place], share)

    def _add_squares(self, sums: dict[str, Tensor]) -> None:
        for name, squares in sums.items():
            if name in self.diagonal:
                self.diagonal[name] += squares.view_as(self.diagonal[name])


def _parted(parts: Sequence[Tensor], *counts: int) -> Iterator[Sequence[Tensor]]:
    """Split a sequence into consecutive parts of given lengths and a remainder."""
    start = 0
    for count in counts:
        yield parts[start : start + count]
        start += count
    yield parts[start:]


def _signs(
    phi: Tensor,  # (B, m)
    count: int | None,
    generator: torch.Generator,
) -> Tensor:  # (B, P, m)
    """Return vectors p in output space with a sum of p p' equal to I in expectation.

    Every output has a random sign in one vector and zeros in the others. Outputs with neighbouring
    ranks are in different vectors, which makes the result exact for inputs that are ambiguous
    between as many classes as there are vectors. For large vocabularies only the largest outputs
    are ranked.
    """
    m = phi.shape[1]
    if count is not None and m > _RANKED:
        signs = torch.randint(0, 2, (len(phi), m), generator=generator, dtype=torch.int8) * 2 - 1
        slots = (torch.arange(m) % count).to(torch.int8).repeat(len(phi), 1).to(phi.device)
        top = phi.detach().topk(_RANKED, dim=1).indices
        turns = (torch.arange(_RANKED) % count).to(slots)
        slots.scatter_(1, top, turns.expand_as(top))
        signs = signs.to(phi)
        return torch.stack([signs * (slots == i) for i in range(count)], dim=1)
    if count is None or count >= m:
        return torch.eye(m, dtype=phi.dtype, device=phi.device).expand(len(phi), m, m)
    return sign_vectors(phi, count, drawn_signs(len(phi), m, generator))


def sign_vectors(
    phi: Tensor,  # (B, m)
    count: int,
    signs: Tensor,  # (B, m)
) -> Tensor:  # (B, count, m)
    """Return sign vectors with outputs of neighbouring ranks in different vectors.

    Args:
        phi: Outputs.
        count: Number of vectors.
        signs: Sign of each output.
    """
    rank = phi.detach().argsort(dim=1, descending=True).argsort(dim=1)
    vectors: Tensor = functional.one_hot(rank % count, count) * signs.to(phi.device).unsqueeze(2)
    return vectors.transpose(1, 2).to(phi.dtype)


def drawn_signs(
    inputs: int, outputs: int, generator: torch.Generator
) -> Tensor:  # (inputs, outputs)
    """Return random signs, drawn input by input, so that they do not depend on batches."""
    return torch.randint(0, 2, (inputs, outputs), generator=generator) * 2 - 1


def block_widths(coverage: Coverage, form: FactorForm) -> list[int]:
    """Return the width of every Kronecker factor, or of its diagonal blocks.

    Args:
        coverage: Forms of the metric for the weights.
        form: Form of the factors.
    """
    widths = [width for block in coverage.blocks for width in (block.width, block.rows)]
    return [place.stop - place.start for width in widths for place in cuts(width, form)]
