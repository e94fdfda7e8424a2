r"""Gram matrix of a network's derivatives, :math:`K_{ia,jb} = \langle J_{ia}, J_{jb}\rangle`.

K is a sum over layers. For a layer that applies a matrix at T positions (tokens, pixels)

.. math:: K_{ia,jb} = \sum_{t,t'} \langle\delta_{iat}, \delta_{jbt'}\rangle
    (\langle x_{it}, x_{jt'}\rangle + 1)

without any derivative with respect to a weight (the structured derivatives of Novak, Sohl-Dickstein
& Schoenholz 2022), or, where that costs more, from the layer's gradients
:math:`\sum_t \delta_{iat} x_{it}'`. For all other weights the columns of J are computed, one block
at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp

from geomerge.metrics.linearisation import Linearisation, mapped_outputs, vectorised
from geomerge.metrics.outputs import nearly_equal
from geomerge.networks.batches import Batch, single, split, take
from geomerge.networks.network import Network

__all__ = ["gram_matrix", "is_matrix_layer", "position_gradients", "position_inputs"]

_ELEMENTS = 2**26  # elements of J held at a time: 512 MiB in float64
_Call = tuple[Tensor, Tensor]  # input and output of a layer
_Pieces = dict[str, slice]  # slices of flattened tensors, by the tensors' names


def gram_matrix(
    network: Network,
    w: Tensor,  # (n,)
    x: Batch,  # (N, ...)
    output: str,
) -> tuple[Linearisation, Tensor]:  # (N m, N m), float64
    """Linearise a network on inputs and compute K = J J'.

    Args:
        network: Network to linearise.
        w: Weights at which to linearise.
        x: Inputs.
        output: Name of the output map, see :func:`~geomerge.metrics.output_map`.

    Returns:
        The linearised network and K. Rows are ordered by input, then by output.
    """
    network = network.with_precision("float32")  # small eigenvalues are below its rounding
    calls: dict[str, list[_Call]] = {}

    def hook(name: str) -> Callable[..., Tensor]:
        def record(
            layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], out: Tensor
        ) -> Tensor:
            (given,) = *args, *kwargs.values()
            calls.setdefault(name, []).append((given.detach(), out))
            return out.clone()  # an in-place activation then changes the copy

        return record

    layers = {k: layer for k, layer in network.module.named_modules() if is_matrix_layer(layer)}
    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_hook(hook(name), with_kwargs=True))
        linearised = Linearisation(network, w, x, output)
    k = torch.zeros(linearised.outputs.numel(), linearised.outputs.numel(), dtype=torch.float64)
    k = k.to(w.device)
    rest = dict.fromkeys(network.shapes)
    # A layer's inputs and gradients are used only if they reproduce autograd's gradient of the
    # weights for random signs at the outputs.
    generator = torch.Generator().manual_seed(0)
    signs = 2 * torch.randint(0, 2, linearised.outputs.shape, generator=generator).to(w) - 1
    truth = network.unravel(linearised.pull(signs))
    for name in calls:
        names = [n for n in (f"{name}.weight", f"{name}.bias") if n in network.shapes]
        positions = _positions(layers[name], calls[name], linearised.outputs)
        if positions is None or f"{name}.weight" not in names:
            continue
        inputs, gradients = positions
        expected = torch.cat([truth[n].reshape(gradients.shape[-1], -1) for n in names], dim=1)
        got = torch.einsum("iatd,ia,ite->de", gradients, signs, inputs)
        if nearly_equal(got, expected):
            # Float64 adds no rounding to that of the derivatives, which keeps small eigenvalues
            # accurate.
            _add_layer(k, inputs.double(), gradients.double())
            for n in names:
                del rest[n]
    for pieces in _blocks(network, list(rest), _ELEMENTS // len(k)):
        rows = _columns(network, w, x, output, pieces).double()
        k += rows @ rows.T
    return linearised, k


def _positions(
    layer: nn.Module,
    calls: list[_Call],
    outputs: Tensor,  # (N, m)
) -> tuple[Tensor, Tensor] | None:  # (N, T, d_in), (N, m, T, d_out)
    """Return a layer's inputs and output gradients; repeated calls are further positions."""
    count, m = outputs.shape
    least = 4 if isinstance(layer, nn.Conv2d) else 2
    if any(x.dim() < least or x[..., 0].numel() % count for x, _ in calls):
        return None
    inputs = torch.cat([position_inputs(layer, x, count) for x, _ in calls], dim=1)
    columns = []
    for a in range(m):
        start = torch.zeros_like(outputs)
        start[:, a] = 1
        found = torch.autograd.grad(
            outputs, [out for _, out in calls], start, retain_graph=True, materialize_grads=True
        )
        columns.append(torch.cat([position_gradients(layer, d, count) for d in found], dim=1))
    return inputs, torch.stack(columns, dim=1)


def _add_layer(
    k: Tensor,  # (M, M)
    x: Tensor,  # (N, T, d_in)
    d: Tensor,  # (N, m, T, d_out)
) -> None:
    n, m, positions, d_out = d.shape
    d_in = x.shape[2]
    if positions**2 * (d_in + d_out) < d_in * d_out:
        blocks = k.view(n, m, n, m)
        for s in range(positions):
            for t in range(positions):
                outer = d[:, :, s].reshape(n * m, -1) @ d[:, :, t].reshape(n * m, -1).T
                blocks += outer.view(n, m, n, m) * (x[:, s] @ x[:, t].T)[:, None, :, None]
        return
    for part in d.split(max(1, _ELEMENTS // (n * m * d_in)), dim=3):
        rows = torch.einsum("iatd,ite->iade", part, x).reshape(n * m, -1)
        k += rows @ rows.T


def _blocks(network: Network, names: list[str], size: int) -> Iterator[_Pieces]:
    """Yield slices that cover all elements of some tensors, at most ``size`` at a time."""
    block: _Pieces = {}
    left = size = max(size, 1)
    for name in names:
        start, length = 0, network.shapes[name].numel()
        while start < length:
            stop = min(start + left, length)
            block[name] = slice(start, stop)
            left -= stop - start
            start = stop
            if left == 0:
                yield block
                block, left = {}, size
    if block:
        yield block


def _columns(
    network: Network,
    w: Tensor,  # (n,)
    x: Batch,  # (N, ...)
    output: str,
    pieces: _Pieces,
) -> Tensor:  # (N m, columns)
    """Return the columns of J for elements of tensors, computed for a few inputs at a time."""
    fixed = network.unravel(w)
    flat = {k: fixed[k].reshape(-1) for k in pieces}

    def phi(wanted: dict[str, Tensor], one: Batch) -> Tensor:
        moved = {
            k: torch.cat([flat[k][: s.start], wanted[k], flat[k][s.stop :]]).view(network.shapes[k])
            for k, s in pieces.items()
        }
        return mapped_outputs(network, {**fixed, **moved}, single(one), output).squeeze(0)

    wanted = {k: flat[k][s] for k, s in pieces.items()}
    with torch.no_grad():
        m = len(phi(wanted, take(x, 0)))
    basis = torch.eye(m, dtype=w.dtype, device=w.device)
    chunk = max(1, _ELEMENTS // (m * sum(f.numel() for f in flat.values())))
    rows = []
    for part in split(x, chunk):

        def derivatives(over: Callable[..., Any], part: Batch = part) -> Any:
            def of_one(one: Batch) -> Any:
                found: Any = vjp(partial(phi, one=one), wanted)
                return over(found[1])(basis)[0]

            return over(of_one)(part)

        jacobian = vectorised(derivatives)
        rows.append(torch.cat([jacobian[k].flatten(0, 1) for k in pieces], dim=1))
    return torch.cat(rows)


def is_matrix_layer(layer: nn.Module) -> bool:
    """Return whether a layer is a Linear, or a Conv2d with one group and numeric zero padding."""
    if isinstance(layer, nn.Conv2d):
        plain = layer.groups == 1 and layer.padding_mode == "zeros"
        return plain and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


def position_inputs(
    layer: nn.Module,
    x: Tensor,  # (B, ..., d_in) or (B, channels, height, width)
    count: int,
) -> Tensor:  # (count, T, d_in), with a column of ones for a bias
    """Return the inputs x_t of ``count`` examples; the first axis may include positions."""
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str), "matrix layers have numbers as padding"
        x = torch.nn.functional.unfold(
            x, layer.kernel_size, layer.dilation, layer.padding, layer.stride
        ).transpose(1, 2)
    x = x.reshape(count, -1, x.shape[-1])
    return x if layer.bias is None else torch.cat([x, x.new_ones(*x.shape[:2], 1)], dim=2)


def position_gradients(
    layer: nn.Module,
    d: Tensor,  # (B, ..., d_out) or (B, d_out, height, width)
    count: int,
) -> Tensor:  # (count, T, d_out)
    """Return the gradients delta_t at the outputs, in the order of :func:`position_inputs`."""
    if isinstance(layer, nn.Conv2d):
        d = d.flatten(2).transpose(1, 2)
    return d.reshape(count, -1, d.shape[-1])
