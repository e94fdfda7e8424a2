"""One or two passes over inputs -> the Kronecker factors of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from geomerge.errors import NumericalError
from geomerge.metric.factor import factorise
from geomerge.metric.kronecker import KroneckerLayer, KroneckerMetric
from geomerge.metric.outputs import output_map
from geomerge.network import Network

__all__ = ["estimate_kronecker"]

_EXACT_OUTPUTS = 16  # up to so many outputs each gets its own backward pass
_PROBES = 8  # otherwise so many random sign vectors: the same expectation
_JACOBIAN_ELEMENTS = 2**26  # memory of the exact diagonal: 256 MiB in float32


def estimate_kronecker(
    network: Network,
    w: Tensor,  # (n,)
    batches: Iterable[Tensor],
    output: str = "hellinger",
    seed: int = 0,
) -> KroneckerMetric:
    """Measure the Kronecker metric of a network at w.

    Args:
        network: The network.
        w: Where.
        batches: Inputs (B, ...) of the manifold; each is seen once.
        output: ``"hellinger"`` or ``"logits"``.
        seed: Of the random sign vectors used where a network has more than 16 outputs.

    Returns:
        The metric as a mean over inputs, in the type of w; decompositions are in float64.

    Raises:
        NumericalError: If activations or gradients are not finite, or no input was given.
    """
    module = network.load(w)
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if _is_covered(layer) and f"{name}.weight" in network.shapes
    }
    sums_a: dict[str, Tensor] = {}
    sums_b: dict[str, Tensor] = {}
    calls: list[tuple[str, Tensor]] = []  # layers in the order called, and their outputs

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def record(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            # Here and now, and a copy handed on: an activation in place would change both.
            if recording:
                _add(sums_a, name, _input_factor(layer, args[0].detach()))
                calls.append((name, out))
            return out.clone()

        return record

    generator = torch.Generator().manual_seed(seed)
    diagonal: dict[str, Tensor] = {}
    covered: set[str] = set()
    count = 0
    recording = False  # off while the diagonal is measured through the same hooks
    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    for layer in layers.values():
        layer.weight.requires_grad_(True)  # so that the outputs of the first layer have gradients
    try:
        for x in batches:
            calls.clear()
            recording = True
            with torch.enable_grad():
                phi = output_map(module(x)[:, network.columns], output)
            recording = False
            count += len(x)
            outs = [out for _, out in calls]
            probes = _probes(phi, generator) if outs else []
            for i, probe in enumerate(probes):
                last = i + 1 == len(probes)
                gradients = torch.autograd.grad(
                    phi,
                    outs,
                    probe,
                    retain_graph=not last,
                    allow_unused=True,
                    materialize_grads=True,
                )
                for (name, _), d in zip(calls, gradients, strict=True):
                    _add(sums_b, name, _output_factor(layers[name], d))
            covered = {f"{name}.{kind}" for name in sums_a for kind in ("weight", "bias")}
            rest = [k for k, _ in module.named_parameters() if k not in covered]
            if rest:
                for name, part in _squared_jacobian(network, w, rest, x, output).items():
                    _add(diagonal, name, part)
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers.values():
            layer.weight.requires_grad_(False)
    if count == 0:
        raise NumericalError("no inputs to measure a metric on, expected at least one; give data")
    _add_statistics(module, diagonal)
    rest_names = tuple(k for k in network.shapes if k not in covered)
    flat = [
        diagonal.get(k, w.new_zeros(network.shapes[k]).double()).reshape(-1) / count
        for k in rest_names
    ]
    return KroneckerMetric(
        network.n,
        tuple(
            KroneckerLayer(
                name,
                network.slices[f"{name}.weight"],
                network.slices.get(f"{name}.bias"),
                factorise(sums_a[name] / count).to(w.dtype, w.device),
                factorise(sums_b[name] / count).to(w.dtype, w.device),
            )
            for name in sums_a
        ),
        tuple(network.slices[k] for k in rest_names),
        torch.cat(flat).to(w.dtype) if flat else w.new_zeros(0),
        rest_names,
    )


def _is_covered(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        plain = layer.groups == 1 and layer.padding_mode == "zeros"
        return plain and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


def _add(sums: dict[str, Tensor], name: str, part: Tensor) -> None:
    part = part.double()
    sums[name] = sums[name] + part if name in sums else part


def _input_factor(layer: nn.Module, a: Tensor) -> Tensor:  # (d_in, d_in)
    if isinstance(layer, nn.Conv2d):
        patches = torch.nn.functional.unfold(
            a, layer.kernel_size, layer.dilation, _padding(layer), layer.stride
        )  # (B, d_in, T)
        a = patches.transpose(1, 2)
    a = a.reshape(-1, a.shape[-1])
    if layer.bias is not None:
        a = torch.cat([a, a.new_ones(len(a), 1)], dim=1)
    return a.T @ a


def _padding(layer: nn.Conv2d) -> tuple[int, ...]:
    assert not isinstance(layer.padding, str), "covered layers have numbers as padding"
    return layer.padding


def _output_factor(layer: nn.Module, d: Tensor) -> Tensor:  # (d_out, d_out)
    if isinstance(layer, nn.Conv2d):
        positions = d.shape[2] * d.shape[3]
        d = d.flatten(2).transpose(1, 2).reshape(-1, d.shape[1])
        return d.T @ d / positions
    positions = d[0].numel() // d.shape[-1]  # more than one for tokens
    d = d.reshape(-1, d.shape[-1])
    return d.T @ d / positions


def _add_statistics(module: nn.Module, diagonal: dict[str, Tensor]) -> None:
    """Give running statistics their diagonal, by the chain rule from scale and shift.

    In y = scale (x - mean) / sqrt(var + eps) + shift, dy/dmean is -scale / sqrt(var + eps) times
    dy/dshift, and dy/dvar is -scale / (2 (var + eps)) times dy/dscale.
    """
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
            continue
        scale, shift = diagonal.get(f"{name}.weight"), diagonal.get(f"{name}.bias")
        if scale is None or shift is None or layer.running_var is None:
            continue
        gain = layer.weight.detach().double()
        spread = layer.running_var.double() + layer.eps
        diagonal[f"{name}.running_mean"] = shift * gain.square() / spread
        diagonal[f"{name}.running_var"] = scale * gain.square() / (4 * spread.square())


def _probes(
    phi: Tensor,  # (B, m)
    generator: torch.Generator,
) -> list[Tensor]:
    """Return directions p in output space with sum of p p' equal to I (in expectation)."""
    m = phi.shape[1]
    if m <= _EXACT_OUTPUTS:
        basis = torch.eye(m, dtype=phi.dtype, device=phi.device)
        return [row.expand_as(phi) for row in basis]
    signs = torch.randint(0, 2, (_PROBES, *phi.shape), generator=generator) * 2 - 1
    return list((signs / _PROBES**0.5).to(phi.device, phi.dtype))


def _squared_jacobian(
    network: Network,
    w: Tensor,  # (n,)
    names: list[str],
    x: Tensor,  # (B, ...)
    output: str,
) -> dict[str, Tensor]:
    """Return, for each named tensor, the sum over inputs and outputs of squared derivatives."""
    fixed = network.unravel(w)
    wanted = {k: fixed.pop(k) for k in names}

    def phi(tensors: dict[str, Tensor], one: Tensor) -> Tensor:
        logits = functional_call(network.module, {**fixed, **tensors}, (one.unsqueeze(0),))
        return output_map(logits[:, network.columns], output).squeeze(0)

    with torch.no_grad():
        m = phi(wanted, x[0]).numel()
    size = m * sum(t.numel() for t in wanted.values())
    chunk = max(1, min(len(x), _JACOBIAN_ELEMENTS // max(size, 1)))
    sums: dict[str, Tensor] = {}
    for part in x.split(chunk):
        jacobian = vmap(jacrev(phi), in_dims=(None, 0))(wanted, part)
        for name, block in jacobian.items():
            _add(sums, name, block.square().sum(dim=(0, 1)))
    return sums
