"""A sketch: the Kronecker metric of a network on its own task, small enough to keep.

With it a later merge can keep that task's function without any of its data. It lies inside the
checkpoint that ``train`` writes, or in a file of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from geomerge.data import Inputs
from geomerge.errors import CheckpointError, RunError, first_line
from geomerge.io.checkpoint import read_safetensors
from geomerge.io.containers import check_plain
from geomerge.io.files import (
    canonical_json,
    check_output,
    parse_json,
    read_regular,
    sha256,
    write_bytes,
)
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.metrics.kronecker.factor import Factor
from geomerge.metrics.kronecker.layer import KroneckerLayer
from geomerge.metrics.kronecker.metric import KroneckerMetric
from geomerge.networks.network import Network
from geomerge.notebook import card

__all__ = [
    "Sketch",
    "load_sketch",
    "make_sketch",
    "restore_sketch",
    "save_sketch",
    "truncated_metric",
    "weights_digest",
]

_META = "geomerge_sketch"
SUFFIXES = (".safetensors",)
SIZE = 3.0  # a sketch holds at most so many numbers for each weight
INPUTS = 10_000


@dataclass(frozen=True)
class Sketch:
    """A metric, where it was measured and on what.

    Attributes:
        metric: The (possibly truncated) Kronecker metric.
        meta: ``task``, ``output``, ``inputs`` (how many), ``weights`` (digest of the network it
            belongs to), ``kept`` (share of each layer's trace in the kept eigenvectors),
            ``places`` (of each layer in the weight vector), ``normalisation``.
    """

    metric: KroneckerMetric
    meta: dict[str, Any]

    def __repr__(self) -> str:
        return f"<Sketch on {self.meta['inputs']} inputs of {self.meta['task']}: {self.metric!r}>"

    def _repr_html_(self) -> str:
        measured = f"{self.meta['output']} outputs, {self.meta['inputs']} inputs"
        return card(f"Sketch on {self.meta['task']} ({measured})", self.metric._repr_html_())

    def tensors(self) -> dict[str, Tensor]:
        """Return all that must be stored, by name."""
        found: dict[str, Tensor] = {}
        for layer in self.metric.layers:
            for side, factor in (("inputs", layer.inputs), ("outputs", layer.outputs)):
                found[f"{layer.name}/{side}.vectors"] = factor.vectors.float().cpu()
                found[f"{layer.name}/{side}.values"] = factor.values.float().cpu()
                found[f"{layer.name}/{side}.tail"] = torch.tensor([factor.tail])
        found["diagonal"] = self.metric.diagonal.float().cpu()
        return found


def weights_digest(
    network: Network,
    w: Tensor,  # (n,)
) -> str:
    """Return a SHA-256 of a network's named weights, whatever file they came in."""
    names = canonical_json({k: list(v) for k, v in network.shapes.items()})
    return sha256(names.encode() + w.detach().cpu().float().numpy().tobytes())


def make_sketch(
    network: Network,
    w: Tensor,  # (n,)
    inputs: Inputs,
    task: str,
    *,
    output: str = "hellinger",
    count: int = INPUTS,
    seed: int = 0,
    batch: int = 500,
) -> Sketch:
    """Measure the sketch of a network at its own weights.

    Args:
        network: The network.
        w: Its weights.
        inputs: Of its task's manifold; no labels are needed.
        task: The task's name, recorded.
        output: One of :data:`~geomerge.metrics.outputs.OUTPUTS`.
        count: How many inputs to use.
        seed: Chooses them.
        batch: Inputs per pass.

    Returns:
        A sketch of at most three numbers per weight. Eigenvectors that tell least for their size
        are dropped first; ``meta["kept"]`` says what share of each layer's trace remained.

    Example:
        >>> from torch import nn
        >>> import geomerge as gm
        >>> network = gm.Network(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
        >>> inputs = gm.load_task("digits").train.inputs
        >>> sketch = gm.make_sketch(network, network.initial, inputs, "digits", count=200)
        >>> sketch.meta["task"], sketch.meta["inputs"]
        ('digits', 200)
        >>> sum(tensor.numel() for tensor in sketch.tensors().values()) <= 3 * network.n
        True
    """
    sample = inputs.sample(count, seed)
    whole = estimate_kronecker(network, w, sample.batches(batch), output, seed)
    metric = truncated_metric(whole, int(SIZE * network.n))
    return Sketch(
        metric,
        {
            "task": task,
            "output": output,
            "inputs": len(sample),
            "seed": seed,
            "weights": weights_digest(network, w),
            "normalisation": inputs.normalisation.to_json(),
            "kept": {layer.name: round(_kept(layer), 6) for layer in metric.layers},
            "places": {layer.name: _places(layer) for layer in metric.layers},
            "diagonal": list(metric.diagonal_only),
        },
    )


def save_sketch(path: str | Path, sketch: Sketch) -> None:
    """Write a sketch to a safetensors file of its own.

    Raises:
        RunError: If the name does not end in ``.safetensors`` or the place cannot be written.
    """
    check_output(Path(path), SUFFIXES)
    content = safetensors.torch.save(sketch.tensors(), {_META: canonical_json(sketch.meta)})
    write_bytes(Path(path), content)


def load_sketch(
    path: str | Path,
    network: Network,
    w: Tensor,  # (n,)
) -> Sketch:
    """Read a sketch and check that it belongs to a network.

    Args:
        path: A file written by :func:`save_sketch`.
        network: The network whose function the sketch shall keep.
        w: Its weights.

    Returns:
        The sketch, on the network's device.

    Raises:
        CheckpointError: If the file is damaged or the sketch is another network's.
        RunError: If it cannot be read.
    """
    path = Path(path)
    try:
        content = read_regular(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"no sketch {path}; make one with geomerge sketch") from error
    except OSError as error:
        raise RunError(f"cannot read {path} ({error.strerror}); check permissions") from error
    tensors, metadata = read_safetensors(content, path)
    try:
        meta = parse_json(metadata.get(_META, "null"))
    except ValueError as error:
        raise CheckpointError(
            f"{path} is a damaged sketch ({first_line(error)}); make it again"
        ) from error
    if not isinstance(meta, dict):
        raise CheckpointError(f"{path} is no sketch; make one with geomerge sketch")
    check_plain(tensors, path)
    return restore_sketch(tensors, meta, network, w, str(path))


def restore_sketch(
    tensors: Mapping[str, Tensor],
    meta: dict[str, Any],
    network: Network,
    w: Tensor,  # (n,)
    source: str,
) -> Sketch:
    """Rebuild a sketch from stored tensors, for the network it was made for.

    Raises:
        CheckpointError: If tensors are missing, misshapen, or of another network.
    """
    if meta.get("weights") != weights_digest(network, w):
        raise CheckpointError(
            f"the sketch in {source} was made for other weights than this network's; make one "
            "with geomerge sketch"
        )
    names = sorted({key.partition("/")[0] for key in tensors if "/" in key})
    try:
        places = meta.get("places") or {name: _usual_places(name, network) for name in names}
        layers = tuple(_restore_layer(name, places[name], tensors, network) for name in names)
        held = [place for layer in layers for place in _places(layer)]
        ends = [0, *(place for pair in sorted(held) for place in pair), network.n]
        if ends != sorted(ends):
            raise ValueError("layers that overlap or lie outside of the weights")
        starts = {start for start, _ in held}
        rest = tuple(k for k, place in network.slices.items() if place.start not in starts)
        diagonal = tensors["diagonal"].to(network.device)
        size = sum(network.shapes[k].numel() for k in rest)
        if diagonal.shape != (size,) or sum(b - a for a, b in held) != network.n - size:
            raise KeyError("diagonal")
        if any(_negative(f) for layer in layers for f in (layer.inputs, layer.outputs)):
            raise ValueError("a negative eigenvalue")
        if diagonal.numel() and float(diagonal.min()) < 0:
            raise ValueError("a negative number on the diagonal")
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the sketch in {source} does not fit the network ({first_line(error)}); make it again"
        ) from error
    metric = KroneckerMetric(
        network.n, layers, tuple(network.slices[k] for k in rest), diagonal, rest
    )
    return Sketch(metric, meta)


def _negative(factor: Factor) -> bool:
    return factor.tail < 0 or bool((factor.values < 0).any())


def _places(layer: KroneckerLayer) -> list[list[int]]:
    """Return where a layer's weight and, if it has one, its bias start and stop."""
    places = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    return [[place.start, place.stop] for place in places]


def _usual_places(name: str, network: Network) -> list[list[int]]:
    """Return a module's places: sketches of version 0.1 hold whole modules and do not say."""
    weight, bias = network.slices[f"{name}.weight"], network.slices.get(f"{name}.bias")
    return [[place.start, place.stop] for place in (weight, bias) if place is not None]


def _restore_layer(
    name: str, places: list[list[int]], tensors: Mapping[str, Tensor], network: Network
) -> KroneckerLayer:
    (start, stop), *bias = places
    factors = {}
    for side in ("inputs", "outputs"):
        vectors = tensors[f"{name}/{side}.vectors"]
        values = tensors[f"{name}/{side}.values"]
        if vectors.shape[1:] != values.shape:
            raise ValueError(f"{name}: {tuple(vectors.shape)}, {tuple(values.shape)}")
        tail = float(tensors[f"{name}/{side}.tail"])
        factors[side] = Factor(vectors, values, tail).to(torch.float32, network.device)
    d_in, d_out = (len(factors[side].vectors) for side in ("inputs", "outputs"))
    lengths = [d_out * (d_in - len(bias)), d_out][: len(places)]
    if [b - a for a, b in places] != lengths:
        raise ValueError(f"{name}: {d_out} x {d_in} at {places}")
    return KroneckerLayer(
        name,
        slice(start, stop),
        slice(*bias[0]) if bias else None,
        factors["inputs"],
        factors["outputs"],
    )


def truncated_metric(metric: KroneckerMetric, budget: int) -> KroneckerMetric:
    """Keep the eigenvectors worth most per stored number, up to a budget of numbers.

    Args:
        metric: The metric.
        budget: Most numbers to store; every factor keeps at least one eigenvector.
    """
    offers: list[tuple[float, int, str, int]] = []  # worth per number, size, side, layer
    for i, layer in enumerate(metric.layers):
        for side, factor, other in (
            ("inputs", layer.inputs, layer.outputs),
            ("outputs", layer.outputs, layer.inputs),
        ):
            size = factor.vectors.shape[0]
            offers += [(float(v) * other.trace / size, size, side, i) for v in factor.values]
    ranks = {(side, i): 0 for _, _, side, i in offers}
    left = budget - metric.diagonal.numel() - 2 * len(metric.layers)  # tails
    for _, size, side, i in sorted(offers, key=lambda offer: -offer[0]):
        if size + 1 > left and ranks[side, i]:  # at least one eigenvector each
            continue
        ranks[side, i] += 1
        left -= size + 1
    layers = (
        KroneckerLayer(
            layer.name,
            layer.weight,
            layer.bias,
            layer.inputs.truncated(ranks["inputs", i]),
            layer.outputs.truncated(ranks["outputs", i]),
        )
        for i, layer in enumerate(metric.layers)
    )
    return replace(metric, layers=tuple(layers))


def _kept(layer: KroneckerLayer) -> float:
    """Return the share of a layer's trace that lies in the kept eigenvectors."""
    return layer.leading_trace / layer.trace if layer.trace > 0 else 1.0
