"""A file and a task -> what damage does: the metric's spectrum, and what each part is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geomerge.data import Inputs, normalisation_of
from geomerge.errors import OptionError
from geomerge.evaluation.files import head_for, open_network, task_for
from geomerge.metrics import KroneckerMetric
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.metrics.kronecker.layer import KroneckerLayer
from geomerge.networks.architectures import recognise
from geomerge.networks.batches import Batch
from geomerge.networks.network import Network
from geomerge.pruning.damage import damage_of, unit_damage
from geomerge.pruning.held_out import HeldOut, hold_out
from geomerge.pruning.masks import SparsityPattern, prunable, removable, saliency, sparsity
from geomerge.pruning.shrink import removed_units
from geomerge.pruning.units import FoundUnits, find_units

__all__ = ["LEVELS", "inspect_network", "inspect_weights"]

LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)  # shares of the weights at zero
_BATCH = 500  # inputs per pass of the metric
_UNIT_SHARE = 4  # each unit is measured on this part of the held-out inputs
_FLAT = 1e-6  # of the largest eigenvalue


def inspect_network(
    file: str | Path,
    manifold: str,
    *,
    output: str = "tempered",
    inputs: int = 2000,
    arch: str | None = None,
    normalisation: Sequence[str] = (),
    data_root: str | None = None,
    download: bool = False,
    device: str = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Report what removing parts of a network does to its function.

    Args:
        file: The network.
        manifold: Name of its task. The metric is measured on training inputs without labels,
            damage on the selection split.
        output: What the metric measures: one of :data:`~geomerge.metrics.outputs.OUTPUTS`.
        inputs: How many inputs of either, at most; each single unit is measured on a quarter.
        arch: Architecture, where the file does not say.
        normalisation: ``TASK=MEAN/STD`` text for that task.
        data_root: Folder of the named data sets.
        download: Whether torchvision may fetch them.
        device: Where to compute.
        seed: Draws the metric's inputs and its sign vectors.

    Returns:
        What :func:`inspect_weights` finds, and what it was found on.

    Raises:
        GeomergeError: If the file, the task or an option is wrong.
    """
    own = normalisation_of(normalisation, manifold)
    if inputs < 1:
        raise OptionError(f"expected --inputs of 1 or more, got {inputs}; correct it")
    checkpoint, whole = open_network(file, arch, device)
    network = head_for(checkpoint, whole, manifold)
    task = task_for(checkpoint, network, manifold, own, data_root, download)
    sample = task.train.inputs.sample(inputs, seed)
    held_out = hold_out(network, network.initial, task.select.first(inputs), output)
    return {
        "file": Path(file).name,
        "sha256": checkpoint.digest,
        "architecture": arch or checkpoint.meta.get("architecture"),
        "recognised": recognise(checkpoint.weights),
        "manifold": manifold,
        "output": output,
        "seed": seed,
        "metric_inputs": len(sample),
        **inspect_weights(network, network.initial, sample, held_out, seed),
    }


def inspect_weights(
    network: Network,
    w: Tensor,  # (n,)
    inputs: Inputs,
    held_out: HeldOut,
    seed: int,
) -> dict[str, Any]:
    """Predict and measure the damage of removing layers, units and single weights.

    Functional changes are means of |phi - phi_0|^2 over inputs; shares lie in [0, 1].

    Args:
        network: The network.
        w: Its weights.
        inputs: What the metric is measured on.
        held_out: What damage is measured on.
        seed: Of the metric's sign vectors.

    Returns:
        Plain data: ``spectrum`` of the whole metric; ``layers``, each with its own and with its
        removal; ``units``, sets of them as :func:`~geomerge.pruning.damage.unit_damage` gives
        them, and ``refused``, why layers have none; ``masks``, one-shot magnitude and Optimal
        Brain Surgeon at each of :data:`LEVELS`.
    """
    metric = estimate_kronecker(network, w, inputs.batches(_BATCH), held_out.output, seed)
    few = held_out.first(max(1, len(held_out) // _UNIT_SHARE))
    found = _units(network, inputs.batch(slice(0, 2)))
    gone = removed_units(network, w, found)
    sets = {one.layer: one for one in found.values()}
    return {
        "held_out_inputs": len(held_out),
        "unit_inputs": len(few),
        "weights": network.n_parameters,
        "zeros": sparsity(w, prunable(network)),
        "accuracy": held_out.accuracy,
        **_layers(network, metric, w, held_out),
        "units": [
            unit_damage(one, gone.get(name, ()), metric, w, few) for name, one in sets.items()
        ],
        "refused": found.refused,
        "masks": _masks(network, metric, w, held_out),
    }


def _units(
    network: Network,
    example: Batch,  # (B, ...)
) -> FoundUnits:
    try:
        return find_units(network, example)
    except OptionError as error:  # the rest of the report needs no units
        return FoundUnits({}, {"all layers": str(error)})


def _layers(
    network: Network,
    metric: KroneckerMetric,
    w: Tensor,  # (n,)
    held_out: HeldOut,
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    spectra: list[Tensor] = []
    for layer in metric.layers:
        values = torch.outer(layer.outputs.values.double(), layer.inputs.values.double())
        spectra.append(values.reshape(-1).cpu())
        without = w.clone()
        layer.write(torch.zeros_like(layer.matrix(w)), without)
        rows.append(
            {
                "name": layer.name,
                "weights": layer.matrix(w).numel(),
                "zeros": sparsity(w, {layer.name: layer.weight}),
                "spectrum": _spectrum(spectra[-1]),
                "removal": {"predicted": _norm(layer, w), **damage_of(held_out, without)},
            }
        )
    if (others := _others(network, metric, w)) is not None:
        rows.append(others[0])
        spectra.append(others[1])
    trace = sum(float(values.sum()) for values in spectra)
    for row, values in zip(rows, spectra, strict=True):
        row["trace_share"] = float(values.sum()) / trace if trace else 0.0
    return {"spectrum": _spectrum(torch.cat(spectra)), "layers": rows}


def _others(
    network: Network,
    metric: KroneckerMetric,
    w: Tensor,  # (n,)
) -> tuple[dict[str, Any], Tensor] | None:
    """Return the row and the spectrum of parameters in no matrix: a diagonal is known of them.

    Running statistics are not among them: they are no weights.
    """
    sizes = [place.stop - place.start for place in metric.rest]
    parts = list(zip(metric.rest, metric.diagonal.split(sizes), strict=True))
    kept = [(place, values) for place, values in parts if place.stop <= network.n_parameters]
    if not kept:
        return None
    values = torch.cat([values for _, values in kept]).double().cpu()
    places = {str(place.start): place for place, _ in kept}
    row = {
        "name": "others",
        "weights": len(values),
        "zeros": sparsity(w, places),
        "spectrum": _spectrum(values),
        "removal": None,
    }
    return row, values


def _spectrum(
    values: Tensor,  # (k,), float64
) -> dict[str, Any]:
    """Describe eigenvalues.

    The effective rank is (sum s)^2 / sum s^2, the participation ratio.
    """
    values = values.sort(descending=True).values
    total, squares = float(values.sum()), float(values.square().sum())
    return {
        "directions": len(values),
        "effective_rank": total**2 / squares if squares else 0.0,
        "largest": float(values[0]),
        "directions_99": min(int((values.cumsum(0) < 0.99 * total).sum()) + 1, len(values)),
        "flat": float((values <= _FLAT * values[0]).double().mean()),
    }


def _norm(
    layer: KroneckerLayer,
    w: Tensor,  # (n,)
) -> float:
    """Return w_l' g w_l, the layer's block alone."""
    parts, eigenvalues = layer.coordinates(layer.matrix(w))
    pairs = zip(parts, eigenvalues, strict=True)
    return sum(float((part.double().square() * e.double()).sum()) for part, e in pairs)


def _masks(
    network: Network,
    metric: KroneckerMetric,
    w: Tensor,  # (n,)
    held_out: HeldOut,
) -> list[dict[str, Any]]:
    places = prunable(network)
    rows = []
    for kind in ("magnitude", "obs"):
        scores = saliency(w, metric, kind)
        for share in LEVELS:
            without = torch.where(
                removable(scores, network, places, SparsityPattern(share)), 0.0, w
            )
            d = without - w
            rows.append(
                {
                    "kind": kind,
                    "share": share,
                    "predicted": metric.inner(d, d),
                    **damage_of(held_out, without),
                }
            )
    return rows
