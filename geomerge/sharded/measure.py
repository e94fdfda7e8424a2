"""Kronecker metric of a sharded network, by hooks in its passes, each factor at its owner alone.

A pass adds its inputs' products to the factors at once: a matrix as large as the factor is summed
over the processes to the owner, or the rows themselves are sent where they are fewer than columns.
No process holds the moments of layers that it does not own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from geomerge.data import Inputs
from geomerge.errors import NumericalError
from geomerge.metrics.kronecker.estimate import drawn_signs, sign_vectors
from geomerge.metrics.kronecker.factor import WIDEST, Moments
from geomerge.metrics.kronecker.layer import KroneckerLayer
from geomerge.metrics.kronecker.metric import KroneckerMetric
from geomerge.metrics.kronecker.products import Product
from geomerge.metrics.kronecker.uses import used_rows_squared
from geomerge.metrics.outputs import output_map
from geomerge.networks.batches import Batch, batch_size, split, take
from geomerge.processes import Team
from geomerge.sharded.forms import Form, NormForm, ProductForm
from geomerge.sharded.layout import Layout
from geomerge.sharded.network import ShardedNetwork

__all__ = ["measure_sharded", "own_share"]

_SIGN_VECTORS = 2
_BUFFER = 25 * 2**20  # bytes that wait to be sent
_TEXTS = 256  # inputs of a batch in which texts are equally long


def own_share(count: int, mates: Team) -> slice:
    """Return this process's share of some inputs, the last shares being shorter or empty.

    Args:
        count: Number of inputs.
        mates: Processes that share them.
    """
    each = -(-count // mates.size)
    return slice(min(mates.rank * each, count), min((mates.rank + 1) * each, count))


def measure_sharded(
    network: ShardedNetwork,
    layout: Layout,
    inputs: Inputs,
    *,
    output: str = "hellinger",
    seed: int = 0,
    at_once: int = 32,
) -> KroneckerMetric:
    """Measure the Kronecker metric of a network at its weights.

    Args:
        network: Network, computing with the layers of one of its networks.
        layout: Places of the weights of a step.
        inputs: Inputs, in one order in all processes.
        output: Output whose change the metric measures.
        seed: Seed of the random sign vectors.
        at_once: Number of inputs per process and pass.

    Returns:
        The metric of the vectors of the layout: in each process that of its own layers and rows.
        Layers that computed nothing have no factors in it.

    Raises:
        NumericalError: If activations or gradients are not finite, in every process.
    """
    sums = _Sums(network, layout, output)
    generator = torch.Generator().manual_seed(seed)
    for batch in inputs.equal_batches(_TEXTS):
        for x in split(batch, at_once * network.mates.size):
            sums.add(x, generator)
    return sums.metric(len(inputs))


class _Sums:
    """Sums of moments and of squared derivatives over inputs."""

    def __init__(self, network: ShardedNetwork, layout: Layout, output: str) -> None:
        self._network, self._layout, self._output = network, layout, output
        self._mates = network.mates
        self._owner = dict(
            zip((form.path for form in network.products), layout.owners, strict=True)
        )
        self._inputs: dict[str, Moments] = {}
        self._outputs: dict[str, Moments] = {}
        self._seen: set[str] = set()  # layers that computed, in any process the same
        norms = {
            name for form in network.forms if isinstance(form, NormForm) for name in form.names
        }
        self._norms, self._diagonal = (  # whole, and rows of this process
            {name: torch.zeros(shapes[name], dtype=torch.float64) for name in names}
            for names, shapes in (
                (norms, network.shapes), ({*network.diagonals} - norms, layout.shapes)
            )
        )  # fmt: skip
        # Owner, whether to sum, the sums, the layer, and the products or rows of this process.
        self._pending: list[tuple[int, bool, dict[str, Moments], str, Tensor]] = []
        # Of one backward pass: a module that computes several times has one derivative.
        self._each: dict[str, Tensor] = {}  # (B, ...), of norms
        self._looked_up: dict[str, list[tuple[Tensor, Tensor]]] = {}  # (B, T, D), (B, T)
        self._leaves: list[Tensor] = []
        self._rows: Counter[str] = Counter()
        self._count = self._most = 0

    def add(
        self,
        x: Batch,  # (B, ...)
        generator: torch.Generator,
    ) -> None:
        """Add a batch of inputs, of which this process passes its share."""
        count = batch_size(x)
        share = own_share(count, self._mates)
        real, self._most = share.stop - share.start, -(-count // self._mates.size)
        own = take(x, share if real else slice(0, 1))  # without inputs of its own: one of weight 0
        self._count, self._leaves = batch_size(own), []
        self._rows.clear()
        self._real = real
        with self._hooked(), torch.enable_grad():
            phi = output_map(self._network.logits(own), self._output)
            signs = self._signs(phi, count, share, generator)
            vectors = signs.shape[1]
            for i in range(vectors):
                torch.autograd.grad(
                    phi, self._leaves, signs[:, i], retain_graph=i + 1 < vectors, allow_unused=True
                )
                self._add_squares()
        self._flush()
        self._leaves = []

    def _signs(
        self, phi: Tensor, count: int, share: slice, generator: torch.Generator
    ) -> Tensor:  # (B, P, m)
        """Return this process's sign vectors, of those that are drawn for the whole batch."""
        m = phi.shape[1]
        if m <= _SIGN_VECTORS:
            signs = torch.eye(m, dtype=phi.dtype).expand(len(phi), m, m)
        else:
            drawn = drawn_signs(count, m, generator)
            own = drawn[share] if self._real else drawn[:1]
            signs = sign_vectors(phi, _SIGN_VECTORS, own)
        return signs if self._real else torch.zeros_like(signs)

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        """Add what modules compute in the context."""
        module = self._network.module
        handles = [
            module.get_submodule(form.path).register_forward_hook(self._hook(form))
            for form in self._network.forms
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, form: Form) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def seen(_module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            if form.path in self._network.static:  # one row of derivatives for each input
                ids = args[0].expand(self._count, *args[0].shape[1:])
                return self._followed(form, ids, out.expand(self._count, *out.shape[1:]).clone())
            return self._followed(form, args[0], out)

        return seen

    def _followed(self, form: Form, x: Tensor, out: Tensor) -> Tensor:
        """Return a module's output, at whose gradient its sums are added."""
        if not out.requires_grad:
            out = out.detach().requires_grad_()
            self._leaves.append(out)
        if isinstance(form, ProductForm):
            product = Product([form.block], out, form.call(x))
            self._rows[form.path] += product.count
            self._seen.add(form.path)
            positions = product.count // self._count
            self._add_rows(self._inputs, form, form.block.width, positions, *product.inputs(0))
            # Without tensors of the pass: a hook that held its own tensor would never be freed.
            call = replace(product.call, x=x.new_empty(0))
            bare = replace(product, out=out.new_empty(0), call=call)
            out.register_hook(lambda d: self._product(form, bare, positions, d))
        elif isinstance(form, NormForm):
            normal = functional.layer_norm(x.detach(), form.shape, None, None, form.eps)
            out.register_hook(lambda d: self._norm(form, normal, d))
        else:
            out.register_hook(lambda d: self._lookup(form, x, d))
        return out.clone() if out.is_leaf else out

    def _product(self, form: ProductForm, product: Product, positions: int, d: Tensor) -> None:
        rows, share = product.outputs(d, 0)
        share *= self._count / self._rows[form.path]
        self._add_rows(self._outputs, form, form.block.rows, positions, rows, share)

    def _add_rows(
        self,
        sums: dict[str, Moments],
        form: Form,
        width: int,
        positions: int,
        rows: Tensor,  # (R, width)
        share: float,
    ) -> None:
        """Have the outer products of rows of all processes added to the owner's sum."""
        rows = rows.detach() if self._real else rows.detach() * 0
        most = self._most * positions  # rows of any process
        summed = most * self._mates.size >= width and width <= WIDEST
        if summed:
            sent = (rows.T @ rows).mul_(share)
        else:
            sent = functional.pad(rows * share**0.5, (0, 0, 0, max(most - len(rows), 0)))
        self._pending.append((self._owner[form.path], summed, sums, form.path, sent))
        if sum(sent.nbytes for *_, sent in self._pending) > _BUFFER:
            self._flush()

    def _flush(self) -> None:
        """Send what waits to the owners, several layers at a time: each message has a delay."""
        waiting, self._pending = self._pending, []
        for owner in range(self._mates.size):
            for summed in (True, False):
                mine = [one[2:] for one in waiting if one[:2] == (owner, summed)]
                if mine:
                    self._send(owner, summed, mine)

    def _send(
        self, owner: int, summed: bool, mine: list[tuple[dict[str, Moments], str, Tensor]]
    ) -> None:
        sizes = [sent.numel() for *_, sent in mine]
        flat = torch.cat([sent.reshape(-1) for *_, sent in mine])
        found: Tensor | None = flat
        if summed:
            self._mates.collect(flat, owner)
        else:
            found = self._mates.put_together(flat, owner)
        if found is None or self._mates.rank != owner:
            return
        of_all = found.view(-1, len(flat)).split(sizes, dim=1)
        for (sums, path, sent), part in zip(mine, of_all, strict=True):
            moments = sums.setdefault(path, Moments())
            if summed:
                moments.add_products(part.view_as(sent))
            else:
                moments.add(part.reshape(-1, sent.shape[1]))

    def _norm(self, form: NormForm, normal: Tensor, d: Tensor) -> None:
        scaled = [d * normal, d][: len(form.names)]
        for name, of_each in zip(form.names, scaled, strict=True):
            shape = self._network.shapes[name]
            each = of_each.reshape(self._count, -1, *shape).sum(dim=1).double()
            self._each[name] = self._each[name] + each if name in self._each else each

    def _lookup(self, form: Form, ids: Tensor, d: Tensor) -> None:
        (name,) = form.names
        width = self._network.shapes[name][1]
        part = d.reshape(self._count, -1, width), ids.reshape(self._count, -1)
        self._looked_up.setdefault(name, []).append(part)

    def _add_squares(self) -> None:
        """Add squared derivatives of a backward pass; of a table those of rows that inputs use."""
        for name, each in self._each.items():
            self._norms[name] += each.square().sum(dim=0)
        for name in sorted(self._looked_up):
            of_each, ids = (
                torch.cat(parts, dim=1) for parts in zip(*self._looked_up[name], strict=True)
            )
            used, squares = used_rows_squared(of_each, ids, self._network.shapes[name][0])
            missing = self._most * of_each.shape[1] - len(used)
            places = self._mates.all_rows(functional.pad(used, (0, missing)))
            found = self._mates.all_rows(functional.pad(squares, (0, 0, 0, missing)))
            start, stop = self._network.rows(name)
            here = (places >= start) & (places < stop)
            self._diagonal[name].index_add_(0, places[here] - start, found[here])
        self._each, self._looked_up = {}, {}

    def metric(self, count: int) -> KroneckerMetric:
        """Return the mean over a number of inputs, and free the sums."""
        self._mates.add([self._norms[name] for name in sorted(self._norms)])
        for name, squares in self._norms.items():
            self._diagonal[name] = squares[slice(*self._network.rows(name))]
        layers, problem = [], ""
        for form in self._network.products:
            if self._owner[form.path] != self._mates.rank or form.path not in self._seen:
                continue
            try:
                layers.append(self._layer(form, count))
            except NumericalError as error:  # raised once all processes know
                problem = problem or str(error)
        failed = torch.tensor([float(bool(problem))])
        self._mates.add([failed])
        if problem or failed:
            raise NumericalError(problem or "a factor failed in another process; see its message")
        places = self._layout.places
        # Of a short tensor the last processes have no rows.
        names = tuple(k for k in self._network.diagonals if places[k].start < places[k].stop)
        parts = [self._diagonal[name].reshape(-1) / count for name in names]
        rest = torch.cat(parts) if parts else torch.zeros(0)
        return KroneckerMetric(
            self._layout.n, tuple(layers), tuple(places[name] for name in names),
            rest.to(self._network.dtype), names,
        )  # fmt: skip

    def _layer(self, form: ProductForm, count: int) -> KroneckerLayer:
        places, dtype = self._layout.places, self._network.dtype
        a, b = (
            sums.pop(form.path).factor(count).to(dtype, torch.device("cpu"))
            for sums in (self._inputs, self._outputs)
        )
        bias = places[form.names[1]] if form.bias is not None else None
        weight = places[form.names[0]]
        return KroneckerLayer(form.path, weight, bias, a, b, transposed=form.transposed)
