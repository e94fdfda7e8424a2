r"""Kronecker factors of Mammoth's TAK as sketches.

TAK (arXiv 2602.17385) stores five files for each task: ``..._aaT.pt`` and ``..._ggT.pt`` with sums
over inputs of the second moments of each linear layer's inputs (extended by a one if the bias is
trained) and of the gradients at its outputs; ``..._ffT.pt`` with the second moments of gradients of
norm layers, whose diagonal is used; and ``..._num_aaT.pt`` and ``..._num_ggT.pt`` with the numbers
of inputs. The gradients are of features, without a head, and both moments are means over tokens.
The files do not record the weights of the measurement.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geomerge.errors import CheckpointError, first_line
from geomerge.io.files import read_regular
from geomerge.io.pickles import StoredTensor
from geomerge.io.torch_files import read_torch
from geomerge.metrics.kronecker.factor import factorise
from geomerge.metrics.kronecker.layer import KroneckerLayer
from geomerge.metrics.kronecker.metric import KroneckerMetric
from geomerge.networks.network import Network

__all__ = ["is_tak_file", "load_tak_metric"]

_NAME = re.compile(r"(.+)_(?:aaT|ggT|ffT|num_aaT|num_ggT)\.pt")
_WEIGHT, _BIAS = ".weight", ".bias"


def is_tak_file(path: Path) -> bool:
    """Return whether a file has the name of a file of TAK's factors."""
    return _NAME.fullmatch(path.name) is not None


def load_tak_metric(path: Path, network: Network) -> tuple[KroneckerMetric, dict[str, Any]]:
    """Read the factors of a task as the metric of a network.

    Args:
        path: One of the five files; the others are in the same folder.
        network: Network of the measurement. Names of the factors are those of its weights, or
            suffixes of these if TAK's encoder is a part of the network.

    Returns:
        The metric, zero for weights without factors; and ``task``, ``inputs`` and ``unmeasured``,
        the names of those weights.

    Raises:
        CheckpointError: If a file is missing, holds anything but tensors, or does not fit.
    """
    match = _NAME.fullmatch(path.name)
    assert match is not None, "the caller asked is_tak_file"
    files = {
        kind: path.with_name(f"{match[1]}_{kind}.pt")
        for kind in ("aaT", "ggT", "ffT", "num_aaT", "num_ggT")
    }
    inputs, outputs, gradients = (_tensors(files[kind]) for kind in ("aaT", "ggT", "ffT"))
    counts = [_count(files[kind]) for kind in ("num_aaT", "num_ggT")]
    if inputs.keys() != outputs.keys():
        odd = sorted(inputs.keys() ^ outputs.keys())[0]
        raise CheckpointError(
            f"{files['aaT']} and {files['ggT']} are not of one task: {odd!r} is in one of them "
            "alone; write both again"
        )
    places = _Places(network, path)
    layers = [
        _layer(places, key, inputs[key] / counts[0], outputs[key] / counts[1]) for key in inputs
    ]
    covered = {span.start for layer in layers for span in _spans(layer)}
    rest = tuple(k for k, place in network.slices.items() if place.start not in covered)
    known = {places.name(key): (key, gram / counts[1]) for key, gram in gradients.items()}
    diagonals = [
        _diagonal(places, *known[name])
        if name in known
        else torch.zeros(network.shapes[name].numel())
        for name in rest
    ]
    diagonal = torch.cat(diagonals) if diagonals else torch.zeros(0)
    metric = KroneckerMetric(
        network.n, tuple(layers), tuple(network.slices[k] for k in rest),
        diagonal.to(network.device), rest,
    )  # fmt: skip
    task = re.sub(r"_task_\d+$", "", match[1])
    unmeasured = [name for name in rest if name not in known]
    return metric, {"task": task, "inputs": counts[0], "unmeasured": unmeasured}


def _stored(file: Path) -> Any:
    """Return the content of a file, a tensor or tensors by name."""
    try:
        content = read_regular(file)
    except OSError as error:
        raise CheckpointError(
            f"cannot read {file} ({error.strerror}), one of the five files that TAK writes for a "
            "task; copy all of them"
        ) from error
    try:
        read = read_torch(content)
        if isinstance(read.content, StoredTensor):
            return read.tensor(read.content)
        if type(read.content) is not dict:
            raise ValueError("no dictionary")
        others = [k for k, v in read.content.items() if not isinstance(v, StoredTensor)]
        if others or not all(type(name) is str for name in read.content):
            raise ValueError(f"something else under {str(others[:1] or '')[1:-1]}")
        return {name: read.tensor(value) for name, value in read.content.items()}
    except Exception as error:  # zipfile and torch raise errors of many types
        raise CheckpointError(
            f"{file} is no file of TAK's factors ({first_line(error)}), expected tensors by the "
            "names of weights and nothing else; write it again"
        ) from error


def _tensors(file: Path) -> dict[str, Tensor]:
    found = _stored(file)
    if not isinstance(found, dict) or not all(_square(gram) for gram in found.values()):
        raise CheckpointError(
            f"{file} holds other tensors, expected a finite square matrix for each weight; write "
            "it again"
        )
    return {name: gram.double() for name, gram in found.items()}


def _square(gram: Tensor) -> bool:
    if gram.dim() != 2 or gram.shape[0] != gram.shape[1] or not gram.is_floating_point():
        return False
    return bool(gram.isfinite().all()) and not bool((gram.diagonal() < 0).any())


def _count(file: Path) -> int:
    found = _stored(file)
    if not isinstance(found, Tensor) or found.numel() != 1 or not int(found) > 0:
        raise CheckpointError(
            f"{file} holds something else, expected the number of inputs; write it again"
        )
    return int(found)


@dataclass(frozen=True)
class _Places:
    """Weights of a network by names of factors."""

    network: Network
    path: Path

    def name(self, key: str) -> str:
        """Return the only weight with a name or a suffix of its name."""
        if key in self.network.shapes:
            return key
        found = [name for name in self.network.shapes if name.endswith(f".{key}")]
        if len(found) != 1:
            raise CheckpointError(
                f"{self.path.parent} has factors of {key!r}, which {len(found) or 'none'} of the "
                "network's weights end in, expected one; name the factors of this network"
            )
        return found[0]

    def misfit(self, key: str, expected: tuple[int, ...], got: int) -> CheckpointError:
        """Return the error of a factor of another size."""
        sizes = " or ".join(map(str, sorted(set(expected))))
        return CheckpointError(
            f"the factors of {key!r} beside {self.path} have {got} rows, expected {sizes}; name "
            "the factors of this network"
        )


def _layer(places: _Places, key: str, inputs: Tensor, outputs: Tensor) -> KroneckerLayer:
    name = places.name(key)
    network = places.network
    shape = network.shapes[name]
    width = shape[1:].numel()
    biased = len(inputs) == width + 1
    bias = f"{name.removesuffix(_WEIGHT)}{_BIAS}"
    if len(shape) != 2 or not (len(inputs) == width or (biased and bias in network.slices)):
        raise places.misfit(key, (width, width + 1), len(inputs))
    if len(outputs) != shape[0]:
        raise places.misfit(key, (shape[0],), len(outputs))
    seen, at_outputs = (
        factorise(gram).to(torch.float32, network.device) for gram in (inputs, outputs)
    )
    return KroneckerLayer(
        name.removesuffix(_WEIGHT), network.slices[name],
        network.slices[bias] if biased else None, seen, at_outputs,
    )  # fmt: skip


def _diagonal(places: _Places, key: str, gram: Tensor) -> Tensor:
    size = places.network.shapes[places.name(key)].numel()
    if len(gram) != size:
        raise places.misfit(key, (size,), len(gram))
    return gram.diagonal().float()


def _spans(layer: KroneckerLayer) -> list[slice]:
    return [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
