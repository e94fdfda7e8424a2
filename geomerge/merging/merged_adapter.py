"""Merged LoRA adapters kept as one adapter: the change of each layer, truncated in its metric."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from geomerge.errors import OptionError
from geomerge.merging.presets.sketches import mean_of_sketches
from geomerge.merging.result import MergeResult
from geomerge.metrics.kronecker.layer import KroneckerLayer
from geomerge.networks.adapters import save_adapter
from geomerge.networks.hugging_face import adapter_base_module, load_adapter_base

__all__ = ["truncated_change", "write_adapter"]

_DAMPING = 1e-3  # of a factor's mean eigenvalue: directions that no input has count a little


def truncated_change(
    change: Tensor,  # (d_out, d_in)
    rank: int,
    layer: KroneckerLayer | None = None,
) -> tuple[Tensor, Tensor, float]:
    """Return factors of the matrix of a rank that is nearest to a change in a layer's metric.

    With A and B the metric's factors it minimises tr((C - X)' B (C - X) A), by the singular values
    of B^(1/2) C A^(1/2).

    Args:
        change: Change C of a weight matrix.
        rank: Largest rank.
        layer: Kronecker block of the matrix; None takes the Euclidean metric.

    Returns:
        Up, shape (d_out, r), and down, shape (r, d_in), whose product is X, and the share of the
        change that it keeps, as a squared length in the metric.
    """
    matrix = change.double()
    roots = [torch.eye(size, dtype=torch.float64) for size in matrix.shape]
    if layer is not None:
        dense = [layer.outputs.dense(), layer.inputs.dense()[: matrix.shape[1], : matrix.shape[1]]]
        roots = [_root(factor.double().cpu()) for factor in dense]
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
) -> float:
    """Write a merged network as a LoRA adapter of its base, its head whole.

    Args:
        folder: Folder of the adapter.
        merged: Merge of adapters.
        name: Name of the network whose head it is.
        model: Merged network with that head, as transformers builds it.
        base: Folder of the base; None takes the recorded one.

    Returns:
        The least share of a layer's change that the rank keeps.

    Raises:
        RunError: If peft is not installed or the folder cannot be written.
    """
    source = merged.space[name].folder
    rank = merged.options.machine.adapter_rank
    assert source is not None, "folder names are those of model folders"
    assert rank is not None, "adapters are written where their rank was given"
    adapter, place = load_adapter_base(source, base)
    start = adapter_base_module(adapter, place)
    metrics = _metrics(merged)
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
        up, down, share = truncated_change(
            change.T if turned else change, rank, metrics.get(layer_name)
        )
        factors[layer_name] = (up, down)
        shares.append(share)
    if not factors:
        raise OptionError(
            f"the merge changes no matrix of {place}, which an adapter could keep; leave "
            "`adapter_rank` out"
        )
    save_adapter(folder, start, factors, whole, adapter.config)
    return min(shares)


def _metrics(merged: MergeResult) -> Mapping[str, KroneckerLayer]:
    """Return the layers of the mean of the sketches, where every network has one."""
    prepared = merged.preset.prepared
    known = prepared.known_space
    if any(expert.sketch is None for expert in known):
        return {}
    mean, network = mean_of_sketches(prepared).mean, known.network
    found = {}
    for key, place in network.slices.items():
        layer = mean.layer_at(place)
        if layer is not None:
            found[key.removesuffix(".weight")] = layer
    return found
