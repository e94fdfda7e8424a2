"""Inspection of a network: spectra of its metric, and damage of removing its parts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geomerge.data import Inputs
from geomerge.errors import OptionError
from geomerge.expert_like import ExpertLike
from geomerge.loading import given_expert
from geomerge.metrics import KroneckerMetric
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.metrics.kronecker.layer import KroneckerLayer
from geomerge.networks.architectures import recognise
from geomerge.networks.batches import Batch
from geomerge.networks.network import Network
from geomerge.notebook import card, table
from geomerge.options import replace_options
from geomerge.pruning.damage import Damage, LayerUnitsDamage, damage_of, unit_damage
from geomerge.pruning.held_out import HeldOut, hold_out
from geomerge.pruning.masks import SparsityPattern, prunable, removable, saliency, sparsity
from geomerge.pruning.options import InspectOptions
from geomerge.pruning.shrink import removed_units
from geomerge.pruning.units import FoundUnits, find_units

__all__ = [
    "LEVELS",
    "Findings",
    "Inspection",
    "LayerDamage",
    "MaskDamage",
    "SpectrumSummary",
    "inspect",
    "inspect_weights",
]

LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)  # sparsities
_BATCH = 500  # inputs per pass of the metric
_UNIT_SHARE = 4  # held-out inputs over the number of them used for each unit
_FLAT = 1e-6  # share of the largest eigenvalue below which a direction is flat


@dataclass(frozen=True)
class SpectrumSummary:
    """Summary of eigenvalues s of a metric.

    Attributes:
        directions: Number of eigenvalues.
        effective_rank: Participation ratio (sum s)^2 / sum s^2.
        largest: Largest eigenvalue.
        directions_99: Number of largest eigenvalues that sum to 99 % of the trace.
        flat: Share of eigenvalues below a millionth of the largest.
    """

    directions: int
    effective_rank: float
    largest: float
    directions_99: int
    flat: float


@dataclass(frozen=True)
class LayerDamage:
    """Sensitivity of one layer, and the damage of removing it.

    Attributes:
        name: Name of the layer; ``others`` for parameters outside of matrices.
        weights: Number of weights.
        zeros: Share of zero weights.
        spectrum: Spectrum of the layer's block of the metric.
        removal: Damage of setting all weights of the layer to zero; None for ``others``.
        trace_share: Share of the metric's trace.
    """

    name: str
    weights: int
    zeros: float
    spectrum: SpectrumSummary
    removal: Damage | None
    trace_share: float = 0.0


@dataclass(frozen=True)
class MaskDamage(Damage):
    """Damage of a one-shot sparsification.

    Attributes:
        kind: Saliency used to choose the weights, ``"magnitude"`` or ``"obs"``.
        share: Share of zeros among the prunable weights.
    """

    kind: str
    share: float


@dataclass(frozen=True)
class Findings:
    """Damage of removing layers, units and single weights of a network.

    Functional changes are means of |phi - phi_0|^2 over inputs; shares are in [0, 1].

    Attributes:
        held_out_inputs: Number of held-out inputs on which damage is measured.
        unit_inputs: Number of held-out inputs on which the damage of single units is measured.
        weights: Number of parameters.
        zeros: Share of zeros among the prunable weights.
        accuracy: Accuracy on the held-out inputs.
        spectrum: Spectrum of the whole metric.
        layers: Sensitivity and damage by layer.
        units: Damage of units by set.
        refused: Reason why units of a layer cannot be removed, by layer.
        masks: Damage of one-shot pruning by magnitude and by Optimal Brain Surgeon at each of
            :data:`LEVELS`.
    """

    held_out_inputs: int
    unit_inputs: int
    weights: int
    zeros: float
    accuracy: float
    spectrum: SpectrumSummary
    layers: list[LayerDamage]
    units: list[LayerUnitsDamage]
    refused: dict[str, str]
    masks: list[MaskDamage]


@dataclass(frozen=True)
class Inspection(Findings):
    """Inspection of an expert.

    Attributes:
        file: Name of the file, or of the network's class.
        sha256: Digest of the file or of the weights.
        architecture: Name of the architecture; None if it is not known.
        recognised: Architecture identified by the shapes of the weights; None without one.
        manifold: Name of the task with the inputs.
        output: Output whose change is measured.
        seed: Seed of the choice of inputs.
        metric_inputs: Number of inputs on which the metric was measured.
        notes: Assumptions about the network, in sentences.
    """

    file: str
    sha256: str
    architecture: str | None
    recognised: str | None
    manifold: str
    output: str
    seed: int
    metric_inputs: int
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return all fields as values that JSON can represent."""
        content = asdict(self)
        del content["notes"]
        return content

    def __repr__(self) -> str:
        return (
            f"<Inspection of {self.file} on {self.manifold}: {self.weights:,} weights, "
            f"{len(self.layers)} layers, {sum(one.count for one in self.units)} units>"
        )

    def _repr_html_(self) -> str:
        layers = [
            [
                one.name, f"{one.weights:,}", f"{one.trace_share:.1%}",
                f"{one.spectrum.effective_rank:.1f}",
                "" if one.removal is None else f"{100 * one.removal.accuracy:.2f}",
            ]
            for one in self.layers
        ]  # fmt: skip
        masks = [
            [one.kind, f"{one.share:.0%}", f"{one.agreement:.1%}", f"{100 * one.accuracy:.2f}"]
            for one in self.masks
        ]
        return card(
            f"{self.file} on {self.manifold}: {100 * self.accuracy:.2f} % held out",
            table(("layer", "weights", "trace", "effective rank", "accuracy without (%)"), layers),
            table(("removed at once by", "zeros", "same label", "accuracy (%)"), masks),
        )


def inspect(
    expert: ExpertLike, options: InspectOptions | None = None, **changes: Any
) -> Inspection:
    """Predict and measure the damage of removing parts of a network.

    Args:
        expert: Network with its task. The metric is measured on inputs without labels, damage on
            the selection split.
        options: Options; None takes the defaults.
        changes: Options by name, such as ``seed=1``; for a module or file also its data, as in
            :func:`~geomerge.pruning.sparsify.sparsify`: ``inputs``, ``arch``, ....

    Raises:
        GeomergeError: If the network or an option is invalid, or there is no task.

    Example:
        >>> from torch import nn
        >>> import geomerge as gm
        >>> module = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
        >>> expert = gm.Expert.from_module(module, gm.load_task("digits"))
        >>> inspection = gm.inspect(expert, inputs=80)
        >>> [layer.name for layer in inspection.layers]
        ['1', '3']
    """
    expert = given_expert(expert, changes)
    options = replace_options(options or InspectOptions(), **changes)
    task = expert.task
    if task is None:
        raise OptionError(
            f"{expert.source} has no task on which damage is measured; name it as in "
            "Expert.load(file, task) or Expert.from_module(module, task)"
        )
    network, w = expert.network, expert.weights
    inputs = expert.inputs or task.train.inputs
    sample = inputs.sample(options.inputs, options.seed)
    held_out = hold_out(network, w, task.select.first(options.inputs), options.output)
    findings = inspect_weights(network, w, sample, held_out, options.seed)
    return Inspection(
        **vars(findings),
        file=Path(expert.source).name,
        sha256=expert.digest,
        architecture=expert.architecture,
        recognised=recognise(network.state_dict(w)),
        manifold=task.name,
        output=options.output,
        seed=options.seed,
        metric_inputs=len(sample),
        notes=(*expert.warnings, *expert.notes),
    )


def inspect_weights(
    network: Network,
    w: Tensor,  # (n,)
    inputs: Inputs,
    held_out: HeldOut,
    seed: int,
) -> Findings:
    """Predict and measure the damage of removing layers, units and single weights.

    Args:
        network: Network.
        w: Weights of the network.
        inputs: Inputs on which the metric is measured.
        held_out: Held-out examples on which damage is measured.
        seed: Seed of the metric's sign vectors.
    """
    metric = estimate_kronecker(network, w, inputs.batches(_BATCH), held_out.output, seed)
    few = held_out.first(max(1, len(held_out) // _UNIT_SHARE))
    found = _units(network, inputs.batch(slice(0, 2)))
    gone = removed_units(network, w, found)
    sets = {one.layer: one for one in found.values()}
    spectrum, layers = _layers(network, metric, w, held_out)
    return Findings(
        held_out_inputs=len(held_out),
        unit_inputs=len(few),
        weights=network.n_parameters,
        zeros=sparsity(w, prunable(network)),
        accuracy=held_out.accuracy,
        spectrum=spectrum,
        layers=layers,
        units=[unit_damage(one, gone.get(name, ()), metric, w, few) for name, one in sets.items()],
        refused=found.refused,
        masks=_masks(network, metric, w, held_out),
    )


def _units(
    network: Network,
    example: Batch,  # (B, ...)
) -> FoundUnits:
    try:
        return find_units(network, example)
    except OptionError as error:  # the report is complete without units
        return FoundUnits({}, {"all layers": str(error)})


def _layers(
    network: Network,
    metric: KroneckerMetric,
    w: Tensor,  # (n,)
    held_out: HeldOut,
) -> tuple[SpectrumSummary, list[LayerDamage]]:
    rows: list[LayerDamage] = []
    spectra: list[Tensor] = []
    for layer in metric.layers:
        values = torch.outer(layer.outputs.values.double(), layer.inputs.values.double())
        spectra.append(values.reshape(-1).cpu())
        without = w.clone()
        layer.write(torch.zeros_like(layer.matrix(w)), without)
        rows.append(
            LayerDamage(
                layer.name,
                layer.matrix(w).numel(),
                sparsity(w, {layer.name: layer.weight}),
                _summary(spectra[-1]),
                damage_of(held_out, without, _norm(layer, w)),
            )
        )
    if (others := _others(network, metric, w)) is not None:
        rows.append(others[0])
        spectra.append(others[1])
    trace = sum(float(values.sum()) for values in spectra)
    rows = [
        replace(row, trace_share=float(values.sum()) / trace if trace else 0.0)
        for row, values in zip(rows, spectra, strict=True)
    ]
    return _summary(torch.cat(spectra)), rows


def _others(
    network: Network,
    metric: KroneckerMetric,
    w: Tensor,  # (n,)
) -> tuple[LayerDamage, Tensor] | None:
    """Return damage and spectrum of parameters outside of matrices, by the metric's diagonal.

    Running statistics are excluded, since they are not parameters.
    """
    sizes = [place.stop - place.start for place in metric.rest]
    parts = list(zip(metric.rest, metric.diagonal.split(sizes), strict=True))
    trained = [(place, values) for place, values in parts if place.stop <= network.n_parameters]
    if not trained:
        return None
    values = torch.cat([values for _, values in trained]).double().cpu()
    places = {str(place.start): place for place, _ in trained}
    row = LayerDamage("others", len(values), sparsity(w, places), _summary(values), None)
    return row, values


def _summary(
    values: Tensor,  # (k,), float64
) -> SpectrumSummary:
    values = values.sort(descending=True).values
    total, squares = float(values.sum()), float(values.square().sum())
    return SpectrumSummary(
        directions=len(values),
        effective_rank=total**2 / squares if squares else 0.0,
        largest=float(values[0]),
        directions_99=min(int((values.cumsum(0) < 0.99 * total).sum()) + 1, len(values)),
        flat=float((values <= _FLAT * values[0]).double().mean()),
    )


def _norm(
    layer: KroneckerLayer,
    w: Tensor,  # (n,)
) -> float:
    """Return w_l' g w_l for the layer's block of the metric."""
    parts, eigenvalues = layer.coordinates(layer.matrix(w))
    pairs = zip(parts, eigenvalues, strict=True)
    return sum(float((part.double().square() * e.double()).sum()) for part, e in pairs)


def _masks(
    network: Network,
    metric: KroneckerMetric,
    w: Tensor,  # (n,)
    held_out: HeldOut,
) -> list[MaskDamage]:
    places = prunable(network)
    rows = []
    for kind in ("magnitude", "obs"):
        scores = saliency(w, metric, kind)
        for share in LEVELS:
            gone = removable(scores, network, places, SparsityPattern(share))
            without = torch.where(gone, 0.0, w)
            d = without - w
            damage = damage_of(held_out, without, metric.inner(d, d))
            rows.append(MaskDamage(**vars(damage), kind=kind, share=share))
    return rows
