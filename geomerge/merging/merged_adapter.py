"""Merged LoRA adapters kept as one adapter: the change of each layer, truncated in its metric."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from geomerge.errors import OptionError, first_few
from geomerge.merging.presets.sketches import mean_of_sketches
from geomerge.merging.result import MergeResult
from geomerge.metrics import KroneckerMetric
from geomerge.metrics.kronecker.forms import dense_factors
from geomerge.networks.adapters import save_adapter
from geomerge.networks.hugging_face import adapter_base_module, load_adapter_base

__all__ = ["AdapterCut", "truncated_change", "write_adapter"]

_DAMPING = 1e-3  # of a factor's mean eigenvalue: directions that no input has count a little


@dataclass(frozen=True)
class AdapterCut:
    """What a rank leaves of a merged network.

    Attributes:
        kept: Least share of a layer's change that the rank keeps.
        plain: Names of the layers that were cut without a metric.
    """

    kept: float
    plain: tuple[str, ...]

    def notes(self, place: str) -> list[str]:
        """Return notes on an adapter.

        Args:
            place: Name of its folder.
        """
        found = [
            f"the adapter in {place} keeps {self.kept:.1%} or more of the change of each layer; "
            "what was measured is the network before that"
        ]
        if self.plain:
            found.append(
                f"the adapter in {place} has the largest singular values of the changes of "
                f"{first_few(self.plain)}, whatever inputs there are: the networks have no "
                "sketches with factors of these"
            )
        return found


def truncated_change(
    change: Tensor,  # (d_out, d_in)
    rank: int,
    factors: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, float]:
    """Return factors of the matrix of a rank that is nearest to a change in a layer's metric.

    With A and B the metric's factors, whole, block diagonal or diagonal, it minimises
    tr((C - X)' B (C - X) A), by the singular values of B^(1/2) C A^(1/2).

    Args:
        change: Change C of a weight matrix.
        rank: Largest rank.
        factors: A, whose last rows beyond d_in are left out, and B, as
            :func:`~geomerge.metrics.kronecker.forms.dense_factors` returns them; None takes the
            Euclidean metric.

    Returns:
        Up, shape (d_out, r), and down, shape (r, d_in), whose product is X, and the share of the
        change that it keeps, as a squared length in the metric.
    """
    matrix = change.double()
    roots = [torch.eye(size, dtype=torch.float64) for size in matrix.shape]
    if factors is not None:
        (a, b), width = factors, matrix.shape[1]
        roots = [_root(factor.double().cpu()) for factor in (b, a[:width, :width])]
    left, right = roots
    u, values, v = torch.linalg.svd(left @ matrix.cpu() @ right, full_matrices=False)
    kept = values[:rank].square().sum() / values.square().sum().clamp(min=1e-300)
    scale = values[:rank].sqrt()
    up = torch.linalg.solve(left, u[:, :rank] * scale)
    down = torch.linalg.solve(right, scale[:, None] * v[:rank], left=False)
    return up.to(change), down.to(change), float(kept)


def _root(factor: Tensor) -> Tensor:
    """Return the square root of a damped positive matrix."""
    values, vectors = torch.linalg.eigh(factor)
    values = values.clamp(min=0) + _DAMPING * values.mean().clamp(min=1e-300)
    root: Tensor = (vectors * values.sqrt()) @ vectors.T
    return root


def write_adapter(
    folder: Path, merged: MergeResult, name: str, model: nn.Module, base: Path | None
) -> AdapterCut:
    """Write a merged network as a LoRA adapter of its base, its head whole.

    Args:
        folder: Folder of the adapter.
        merged: Merge of adapters.
        name: Name of the network whose head it is.
        model: Merged network with that head, as transformers builds it.
        base: Folder of the base; None takes the recorded one.

    Raises:
        RunError: If peft is not installed or the folder cannot be written.
    """
    source = merged.space[name].folder
    rank = merged.options.machine.adapter_rank
    assert source is not None, "folder names are those of model folders"
    assert rank is not None, "adapters are written where their rank was given"
    adapter, place = load_adapter_base(source, base)
    start = adapter_base_module(adapter, place)
    metric, plain = _metric(merged), []
    factors, whole, shares = {}, {}, [1.0]
    before = start.state_dict()
    heads = merged.preset.prepared.heads.layers
    for layer_name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if layer_name in heads or adapter.brings(f"{layer_name}.weight"):
            whole[layer_name] = module  # the base has none, or another
            continue
        moved = [k for k, v in own.items() if not torch.equal(v, before[f"{layer_name}.{k}"])]
        if not moved:
            continue
        if moved != ["weight"] or own["weight"].dim() != 2 or isinstance(module, nn.Embedding):
            whole[layer_name] = module
            continue
        change = own["weight"].detach() - before[f"{layer_name}.weight"]
        turned = not isinstance(module, nn.Linear)  # Conv1D of transformers
        found = None if metric is None else _factors(merged, metric, layer_name)
        if found is None:
            plain.append(layer_name)
        up, down, share = truncated_change(change.T if turned else change, rank, found)
        factors[layer_name] = (up, down)
        shares.append(share)
    if not factors:
        raise OptionError(
            f"the merge changes no matrix of {place}, which an adapter could keep; leave "
            "`adapter_rank` out"
        )
    save_adapter(folder, start, factors, whole, adapter.config)
    return AdapterCut(min(shares), tuple(plain))


def _metric(merged: MergeResult) -> KroneckerMetric | None:
    """Return the mean of the sketches, where every network has one."""
    prepared = merged.preset.prepared
    if any(expert.sketch is None for expert in prepared.known_space):
        return None
    return mean_of_sketches(prepared).mean


def _factors(
    merged: MergeResult, metric: KroneckerMetric, layer: str
) -> tuple[Tensor, Tensor] | None:
    """Return the dense factors of a layer's weight; None where the metric has none."""
    place = merged.preset.prepared.known_space.network.slices.get(f"{layer}.weight")
    return None if place is None else dense_factors(metric, place)
