"""Sketches: stored Kronecker metrics of networks, measured on their own tasks.

With a sketch a later merge can preserve the function of a network without the data of its task.
A sketch is stored in the checkpoint that ``train`` writes or in a file of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geomerge.data import Inputs
from geomerge.errors import CheckpointError, RunError, first_line
from geomerge.io import paged
from geomerge.io.checkpoint import read_safetensors
from geomerge.io.containers import check_plain
from geomerge.io.files import (
    canonical_json,
    check_output,
    parse_json,
    read_regular,
    write_tensors,
)
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.metrics.kronecker.factor import Factor
from geomerge.metrics.kronecker.layer import KroneckerLayer
from geomerge.metrics.kronecker.metric import KroneckerMetric
from geomerge.metrics.registry import BATCH, METRICS
from geomerge.metrics.sketch_size import (
    diagonal_of_parts,
    diagonal_parts,
    halved,
    numbers_left,
    orthonormal,
)
from geomerge.metrics.tak_factors import is_tak_file, load_tak_metric
from geomerge.networks.network import Network
from geomerge.notebook import card

__all__ = [
    "SHARE",
    "SKETCH_FILE",
    "Sketch",
    "load_sketch",
    "make_sketch",
    "restore_sketch",
    "save_sketch",
    "sketch_seconds",
    "truncated_metric",
    "weights_digest",
]

_META = "geomerge_sketch"
SUFFIXES = (".safetensors",)
SKETCH_FILE = "geomerge-sketch.safetensors"  # file name in a Hugging Face model folder
SHARE = 0.25  # bytes of a file by `geomerge sketch`, as a share of those of the weights
SIZE = 3.0  # stored numbers per weight, at most
INPUTS = 10_000
UNNAMED = "inputs"  # task in the record of inputs without a name
FEATURES = "features"  # output of foreign factors: features without a head, for any output


@dataclass(frozen=True)
class Sketch:
    """Kronecker metric with a record of its measurement.

    Attributes:
        metric: Kronecker metric, possibly truncated.
        meta: Record: ``task``, ``output``, ``inputs`` (their number), ``weights`` (digest of the
            measured network), ``kept`` (share of each layer's trace in the stored eigenvectors),
            ``places`` (slices of each layer in the weight vector), ``normalisation``.
    """

    metric: KroneckerMetric
    meta: dict[str, Any]

    def measures(self, output: str) -> bool:
        """Return whether the sketch measures the change of an output.

        Args:
            output: Name of the output map; a sketch of features is valid for all.
        """
        return self.meta.get("output") in (output, FEATURES)

    def __repr__(self) -> str:
        return f"<Sketch on {self.meta['inputs']} inputs of {self.meta['task']}: {self.metric!r}>"

    def _repr_html_(self) -> str:
        measured = f"{self.meta['output']} outputs, {self.meta['inputs']} inputs"
        return card(f"Sketch on {self.meta['task']} ({measured})", self.metric._repr_html_())

    def tensors(self) -> dict[str, Tensor]:
        """Return the stored tensors by name."""
        tensors: dict[str, Tensor] = {}
        for layer in self.metric.layers:
            for side, factor in (("inputs", layer.inputs), ("outputs", layer.outputs)):
                tensors[f"{layer.name}/{side}.vectors"] = factor.vectors.float().cpu()
                tensors[f"{layer.name}/{side}.values"] = factor.values.float().cpu()
                tensors[f"{layer.name}/{side}.tail"] = torch.tensor([factor.tail])
        tensors["diagonal"] = self.metric.diagonal.float().cpu()
        return tensors

    def small(self, share: float = SHARE) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and the record of a compressed sketch.

        Eigenvectors with the smallest trace per stored number are dropped first. The others are
        stored in bfloat16, and diagonals of large tables as outer products of a row and a column.

        Args:
            share: Bytes as a share of those of the weights in float32. At least one eigenvector of
                every factor is stored in any case.
        """
        shapes = {k: tuple(v) for k, v in self.meta.get("shapes", {}).items()}
        parts = diagonal_parts(self.metric, shapes)
        left = numbers_left(self.metric, parts, share)
        few = Sketch(truncated_metric(self.metric, left), self.meta)
        kept = {layer.name: round(_stored_share(layer), 6) for layer in few.metric.layers}
        tensors = {k: v for k, v in few.tensors().items() if k != "diagonal"}
        return {**halved(tensors), **parts}, {**self.meta, "kept": kept}


def weights_digest(
    network: Network,
    w: Tensor,  # (n,)
) -> str:
    """Return the SHA-256 of a network's named weights, which does not depend on their file."""
    names = canonical_json({k: list(v) for k, v in network.shapes.items()})
    digest = hashlib.sha256(names.encode())
    for (part,) in paged.in_parts(w.detach()):
        digest.update(part.cpu().float().numpy().tobytes())
    return digest.hexdigest()


def make_sketch(
    network: Network,
    w: Tensor,  # (n,)
    inputs: Inputs,
    task: str,
    *,
    output: str = "hellinger",
    count: int = INPUTS,
    seed: int = 0,
) -> Sketch:
    """Measure the sketch of a network at its own weights.

    Args:
        network: Network to measure.
        w: Weights of the network.
        inputs: Inputs of its task, without labels.
        task: Name of the task, for the record.
        output: Name of the output map, one of :data:`~geomerge.metrics.outputs.OUTPUTS`.
        count: Largest number of inputs to use.
        seed: Seed of the choice of inputs and of random sign vectors.

    Returns:
        Sketch of at most three numbers per weight. Eigenvectors with the smallest trace per stored
        number are dropped first; ``meta["kept"]`` holds the remaining share of each layer's trace.

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
    whole = estimate_kronecker(network, w, sample.equal_batches(BATCH), output, seed)
    metric = truncated_metric(whole, int(SIZE * network.n))
    return Sketch(
        metric,
        {
            "task": task,
            "output": output,
            "inputs": len(sample),
            "seed": seed,
            "normalisation": inputs.normalisation.to_json(),
            **_record(metric, network, w),
        },
    )


def sketch_seconds(
    network: Network,
    w: Tensor,  # (n,)
    inputs: Inputs,
    output: str = "hellinger",
    count: int = INPUTS,
) -> float:
    """Estimate the seconds of :func:`make_sketch`, from a few inputs and two decompositions.

    Args:
        network: Network to measure.
        w: Weights of the network.
        inputs: Inputs of its task, without labels.
        output: Name of the output map.
        count: Largest number of inputs of the sketch.
    """
    pace_of = METRICS[KroneckerMetric.name].pace
    assert pace_of is not None, "the Kronecker metric is registered with one"
    sample = inputs.first(count)
    pace = pace_of(network, w, sample, output)
    return pace.besides + len(sample) * (pace.each + pace.one_by_one_seconds)


def save_sketch(
    path: str | Path, sketch: Sketch, share: float | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Write a sketch to a safetensors file.

    Args:
        path: Path of the file.
        sketch: Sketch.
        share: Bytes of the file as a share of those of the weights in float32; None stores the
            complete sketch in float32.

    Returns:
        The tensors and the record that were written.

    Raises:
        RunError: If the name does not end in ``.safetensors`` or the file cannot be written.
    """
    check_output(Path(path), SUFFIXES)
    whole = (sketch.tensors(), sketch.meta)
    tensors, meta = whole if share is None else sketch.small(share)
    write_tensors(Path(path), tensors, {_META: canonical_json(meta)})
    return tensors, meta


def load_sketch(
    path: str | Path,
    network: Network,
    w: Tensor,  # (n,)
) -> Sketch:
    """Read a sketch and check that it belongs to a network.

    Args:
        path: File written by :func:`save_sketch`; or one of those of a task that Mammoth's TAK
            wrote, such as ``seq-8vision_task_0_aaT.pt``, which do not say what weights they are of.
        network: Network whose sketch is expected.
        w: Weights of the network.

    Returns:
        Sketch, on the network's device.

    Raises:
        CheckpointError: If the file is damaged, or the sketch was made for another network.
        RunError: If the file cannot be read.
    """
    path = Path(path)
    if is_tak_file(path):
        return _of_tak(path, network, w)
    try:
        content = read_regular(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no file {path} of a sketch; make one with geomerge sketch"
        ) from error
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


def _of_tak(path: Path, network: Network, w: Tensor) -> Sketch:
    """Return TAK's factors as a sketch, as large as those of other networks."""
    whole, found = load_tak_metric(path, network)
    metric = truncated_metric(whole, int(SIZE * network.n))
    return Sketch(metric, {**found, "output": FEATURES, **_record(metric, network, w)})


def _record(metric: KroneckerMetric, network: Network, w: Tensor) -> dict[str, Any]:
    """Return what a sketch records of its metric and of the network that it is of."""
    return {
        "weights": weights_digest(network, w),
        "kept": {layer.name: round(_stored_share(layer), 6) for layer in metric.layers},
        "places": {layer.name: _places(layer) for layer in metric.layers},
        "diagonal": list(metric.diagonal_only),
        "shapes": {k: list(network.shapes[k]) for k in metric.diagonal_only},
        "transposed": [layer.name for layer in metric.layers if layer.transposed],
    }


def restore_sketch(
    tensors: Mapping[str, Tensor],
    meta: dict[str, Any],
    network: Network,
    w: Tensor,  # (n,)
    source: str,
) -> Sketch:
    """Rebuild a sketch of a network from stored tensors.

    Args:
        tensors: Stored tensors by name.
        meta: Record of the measurement.
        network: Network whose sketch is expected.
        w: Weights of the network.
        source: Name of the file, for error messages.

    Raises:
        CheckpointError: If tensors are missing, have wrong shapes, or belong to another network.
    """
    if meta.get("weights") != weights_digest(network, w):
        raise CheckpointError(
            f"the sketch in {source} was made for other weights than this network's; make one "
            "with geomerge sketch"
        )
    names = sorted({key.partition("/")[0] for key in tensors if "/" in key})
    try:
        places = meta.get("places") or {name: _usual_places(name, network) for name in names}
        turned = set(meta.get("transposed", ()))
        store = paged.Store(w.nbytes)
        restored = (_restore_layer(name, places[name], tensors, network) for name in names)
        layers = tuple(
            replace(layer.held_in(store), transposed=layer.name in turned) for layer in restored
        )
        held = [place for layer in layers for place in _places(layer)]
        ends = [0, *(place for pair in sorted(held) for place in pair), network.n]
        if ends != sorted(ends):
            raise ValueError("layers that overlap or lie outside of the weights")
        starts = {start for start, _ in held}
        rest = tuple(k for k, place in network.slices.items() if place.start not in starts)
        whole = tensors.get("diagonal")
        known = diagonal_of_parts(tensors, [*rest]) if whole is None else whole
        diagonal = known.to(network.device)
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
    paged.give_back()
    metric = KroneckerMetric(
        network.n, layers, tuple(network.slices[k] for k in rest), diagonal, rest
    )
    return Sketch(metric, meta)


def _negative(factor: Factor) -> bool:
    return factor.tail < 0 or bool((factor.values < 0).any())


def _places(layer: KroneckerLayer) -> list[list[int]]:
    """Return the first and last places of a layer's weight and bias in the weight vector."""
    places = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    return [[place.start, place.stop] for place in places]


def _usual_places(name: str, network: Network) -> list[list[int]]:
    """Return the places of a whole module; sketches of version 0.1 do not record them."""
    weight, bias = network.slices[f"{name}.weight"], network.slices.get(f"{name}.bias")
    return [[place.start, place.stop] for place in (weight, bias) if place is not None]


def _restore_layer(
    name: str, places: list[list[int]], tensors: Mapping[str, Tensor], network: Network
) -> KroneckerLayer:
    (start, stop), *bias = places
    factors = {}
    for side in ("inputs", "outputs"):
        vectors = orthonormal(tensors[f"{name}/{side}.vectors"])
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


def truncated_metric(metric: KroneckerMetric, max_numbers: int) -> KroneckerMetric:
    """Keep the eigenvectors with the largest trace per stored number.

    Args:
        metric: Metric to truncate.
        max_numbers: Largest count of numbers to store; at least one eigenvector of every factor is
            kept.
    """
    offers: list[tuple[float, int, str, int]] = []  # trace per number, size, side, layer
    for i, layer in enumerate(metric.layers):
        for side, factor, other in (
            ("inputs", layer.inputs, layer.outputs),
            ("outputs", layer.outputs, layer.inputs),
        ):
            size, share = factor.size, other.trace / factor.size
            offers += [(v * share, size, side, i) for v in factor.values.tolist()]
    ranks = {(side, i): 0 for _, _, side, i in offers}
    left = max_numbers - metric.diagonal.numel() - 2 * len(metric.layers)  # tails
    for _, size, side, i in sorted(offers, key=lambda offer: -offer[0]):
        if size + 1 > left and ranks[side, i]:  # at least one eigenvector each
            continue
        ranks[side, i] += 1
        left -= size + 1
    layers = (
        replace(
            layer,
            inputs=layer.inputs.truncated(ranks["inputs", i]),
            outputs=layer.outputs.truncated(ranks["outputs", i]),
        )
        for i, layer in enumerate(metric.layers)
    )
    return replace(metric, layers=tuple(layers))


def _stored_share(layer: KroneckerLayer) -> float:
    """Return the share of a layer's trace in the stored eigenvectors."""
    return layer.leading_trace / layer.trace if layer.trace > 0 else 1.0
