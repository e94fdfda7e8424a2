"""Kronecker factors of a network, estimated in one or two passes over inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from geomerge.data import Inputs
from geomerge.errors import NumericalError
from geomerge.metrics.kronecker.coverage import Coverage, copies, find_coverage
from geomerge.metrics.kronecker.diagonal import squared_derivatives
from geomerge.metrics.kronecker.factor import RANK, WHOLE, Moments
from geomerge.metrics.kronecker.layer import KroneckerLayer
from geomerge.metrics.kronecker.metric import KroneckerMetric
from geomerge.metrics.kronecker.norms import Normed
from geomerge.metrics.kronecker.tracing import Block, Product, ProductTracer
from geomerge.metrics.outputs import output_map
from geomerge.metrics.registry import BATCH, NetworkSize, metric
from geomerge.networks.batches import Batch, batch_size, split, take
from geomerge.networks.network import Network

__all__ = ["estimate_kronecker", "factor_widths"]

_ELEMENTS = 2**26  # activations or derivatives held at a time: 256 MiB in float32


def estimate_kronecker(
    network: Network,
    w: Tensor,  # (n,)
    batches: Iterable[Batch],
    output: str = "hellinger",
    seed: int = 0,
    sign_vectors: int | None = 2,
) -> KroneckerMetric:
    """Measure the Kronecker metric of a network at w.

    Args:
        network: Network to measure.
        w: Weights at which to measure.
        batches: Batches of inputs, shape (B, ...); each is used once.
        output: Name of the output map, one of :data:`~geomerge.metrics.outputs.OUTPUTS`.
        seed: Seed of the random sign vectors.
        sign_vectors: Number of random sign vectors, and so of backward passes, that replace the
            outputs without changing the expectation. Walks with two are as good as with all
            outputs; with few inputs, walks with one are not. None uses every output.

    Returns:
        The metric as a mean over inputs, in the type of w; decompositions are in float64.

    Raises:
        NumericalError: If activations or gradients are not finite, or there is no input.
    """
    sums: _Accumulator | None = None
    generator = torch.Generator().manual_seed(seed)
    count = 0
    for batch in batches:
        if sums is None:
            coverage = find_coverage(network, w, take(batch, slice(0, 1)))
            sums = _Accumulator(network, w, output, coverage, sign_vectors)
        count += batch_size(batch)
        for x in split(batch, sums.batch):
            sums.add(x, generator)
    if sums is None or count == 0:
        raise NumericalError("there are no `inputs` to measure a metric on; give at least one")
    flat = [sums.diagonal[name].reshape(-1) / count for name in sums.rest]
    return KroneckerMetric(
        network.n,
        tuple(
            KroneckerLayer(
                sums.coverage.label(block, network),
                slice(block.start, block.stop),
                None if block.bias is None else slice(block.bias, block.bias + block.rows),
                sums.inputs[block].factor(count).to(w.dtype, w.device),
                sums.outputs[block].factor(count).to(w.dtype, w.device),
            )
            for block in sums.inputs
        ),
        tuple(network.slices[k] for k in sums.rest),
        torch.cat(flat).to(w.dtype) if flat else w.new_zeros(0),
        tuple(sums.rest),
    )


@dataclass(frozen=True)
class _Pass:
    """A forward pass: mapped outputs, and all tensors whose gradients are needed."""

    phi: Tensor  # (B, m)
    products: list[Product]
    norms: list[Normed]
    copies: dict[str, Tensor]  # (B, ...)


class _Accumulator:
    """Sums of moments and squared derivatives over inputs."""

    def __init__(
        self,
        network: Network,
        w: Tensor,  # (n,)
        output: str,
        coverage: Coverage,
        sign_vectors: int | None,
    ) -> None:
        self.network, self.w, self.output, self.coverage = network, w, output, coverage
        self.sign_vectors = sign_vectors
        in_blocks = {name for names in coverage.blocks.values() for name in names}
        self.rest = [name for name in network.shapes if name not in in_blocks]
        at_once = {*coverage.normed.values(), *coverage.copied}
        self.one_by_one = [name for name in self.rest if name not in at_once]
        most = network.max_batch or _ELEMENTS
        self.batch = max(1, min(_ELEMENTS // max(coverage.width, 1), most))
        self.inputs: dict[Block, Moments] = {}  # moments of the blocks' inputs
        self.outputs: dict[Block, Moments] = {}  # moments of the gradients at their outputs
        self.diagonal: dict[str, Tensor] = {}

    def add(
        self,
        x: Batch,  # (B, ...)
        generator: torch.Generator,
    ) -> None:
        """Add a batch of inputs."""
        signs = self._add_gradients(x, generator)
        if not self.one_by_one:
            return
        count = sum(self.network.shapes[name].numel() for name in self.one_by_one)
        most = max(1, _ELEMENTS // (signs.shape[1] * (count + self.coverage.width)))
        for part, rows in zip(split(x, most), signs.split(most), strict=True):
            lookups = self.coverage.lookups
            self._add_squares(
                squared_derivatives(
                    self.network, self.w, self.one_by_one, lookups, part, rows, self.output
                )
            )

    def _add_gradients(self, x: Batch, generator: torch.Generator) -> Tensor:  # (B, P, m)
        """Add all that follows from gradients at activations, and return the sign vectors."""
        seen = self._forward(x)
        signs = _signs(seen.phi, self.sign_vectors, generator)
        rows: Counter[Block] = Counter()  # rows of activations per block
        for product in seen.products:
            rows[product.block] += product.out.numel() // product.block.rows
        at = [call.out for call in seen.products] + [call.out for call in seen.norms]
        for i in range(signs.shape[1] if at or seen.copies else 0):
            gradients = torch.autograd.grad(
                seen.phi,
                [*at, *seen.copies.values()],
                signs[:, i],
                retain_graph=i + 1 < signs.shape[1],
                allow_unused=True,
                materialize_grads=True,
            )
            for product, d in zip(seen.products, gradients, strict=False):
                moments = self.outputs.setdefault(product.block, Moments())
                moments.add(product.outputs(d), batch_size(x) / rows[product.block])
            by_name = dict(zip(seen.copies, gradients[len(at) :], strict=True))  # (B, ...)
            for normed, d in zip(seen.norms, gradients[len(seen.products) :], strict=False):
                for span, part in normed.derivatives(d, self.coverage.norms[normed.norm]):
                    if (name := self.coverage.normed.get(span)) is not None:
                        by_name[name] = by_name[name] + part if name in by_name else part
            self._add_squares({k: d.double().square().sum(dim=0) for k, d in by_name.items()})
        return signs

    def _forward(self, x: Batch) -> _Pass:
        products: list[Product] = []
        norms: list[Normed] = []

        def on_product(product: Product, activations: Tensor) -> None:
            if product.block in self.coverage.blocks:
                moments = self.inputs.setdefault(product.block, Moments())
                moments.add(product.inputs(activations))
                product.out.requires_grad_()  # also in the first layer
                products.append(product)

        def on_norm(normed: Normed) -> None:
            if normed.norm in self.coverage.norms:
                normed.out.requires_grad_()
                norms.append(normed)

        self.network.shared_module(self.w)
        tensors = self.network.unravel(self.w)
        own = {k: copies(tensors[k], batch_size(x)).clone() for k in self.coverage.copied}
        for tensor in own.values():
            tensor.requires_grad_()
        with torch.enable_grad(), ProductTracer(self.w, on_product, on_norm):
            phi = output_map(self.network.functional(own, x), self.output)
        return _Pass(phi, products, norms, own)

    def _add_squares(self, sums: dict[str, Tensor]) -> None:
        for name, squares in sums.items():
            self.diagonal[name] = self.diagonal.get(name, 0.0) + squares


def _signs(
    phi: Tensor,  # (B, m)
    count: int | None,
    generator: torch.Generator,
) -> Tensor:  # (B, P, m)
    """Return vectors p in output space with a sum of p p' equal to I in expectation.

    Every output has a random sign in one vector and zeros in the others. Outputs of neighbouring
    size are in different vectors, which makes the result exact for inputs that are ambiguous
    between as many classes.
    """
    m = phi.shape[1]
    if count is None or count >= m:
        return torch.eye(m, dtype=phi.dtype, device=phi.device).expand(len(phi), m, m)
    # Signs are drawn input by input, so that they do not depend on the batches.
    signs = torch.randint(0, 2, (len(phi), m), generator=generator).to(phi.device) * 2 - 1
    rank = phi.detach().argsort(dim=1, descending=True).argsort(dim=1)
    vectors: Tensor = functional.one_hot(rank % count, count) * signs.unsqueeze(2)
    return vectors.transpose(1, 2).to(phi.dtype)


def factor_widths(
    network: Network,
    w: Tensor,  # (n,)
    x: Batch,  # (1, ...)
) -> list[int]:
    """Return the width of every Kronecker factor of a network, by a pass of one input."""
    widths = []
    for block in find_coverage(network, w, x).blocks:
        inputs = (block.stop - block.start) // block.rows + (block.bias is not None)
        widths += [inputs, block.rows]
    return widths


_CARRIED = 1152  # directions of a factor that is not decomposed in full


def _measuring_bytes(sizes: Sequence[NetworkSize]) -> int:
    """Second moments of all factors in float64, the result, and the largest decomposition."""
    needs = []
    for size in sizes:
        widths = factor_widths(size.network, size.w, size.x)
        moments = sum(8 * d * d for d in widths)
        result = sum(4 * d * (d if d <= WHOLE else _CARRIED) for d in widths)
        largest = max((32 * d * min(d, 3 * _CARRIED) for d in widths), default=0)
        needs.append(moments + result + largest)
    return max(needs, default=0)


def _held_bytes(sizes: Sequence[NetworkSize]) -> int:
    widths = (factor_widths(size.network, size.w, size.x) for size in sizes)
    return max((4 * sum(d * (d if d <= WHOLE else RANK) for d in of) for of in widths), default=0)


@metric(
    KroneckerMetric, "Kronecker factors per layer, cheap and storable as a sketch",
    cheaper="euclidean", measuring_bytes=_measuring_bytes, held_bytes=_held_bytes,
)  # fmt: skip
def _measure(
    network: Network, w: Tensor, inputs: Inputs, output: str, seed: int
) -> KroneckerMetric:
    return estimate_kronecker(network, w, inputs.equal_batches(BATCH), output, seed)
