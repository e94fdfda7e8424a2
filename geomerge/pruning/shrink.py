"""Smaller networks by deletion of zero units, and export for plain PyTorch."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geomerge.errors import CheckpointError, OptionError, first_line
from geomerge.io.files import check_output, write_bytes
from geomerge.metrics.outputs import nearly_equal
from geomerge.networks.architectures.rebuild import resize_layers
from geomerge.networks.batches import Batch, arguments, concat, pass_to, take, to_device
from geomerge.networks.network import Network
from geomerge.networks.outputs import logits_in
from geomerge.pruning.parts import Role
from geomerge.pruning.units import Units, find_units, unit_named

__all__ = ["export_plain", "removed_units", "shrink"]

_SAME = 1e-5  # relative rounding error of the outputs of a deep network in float32


def removed_units(
    network: Network,
    w: Tensor,  # (n,)
    units: Mapping[str, Units],
) -> dict[str, list[int]]:
    """Find removed units, whose producing and consuming weights are all exactly zero.

    Args:
        network: Network.
        w: Weights of the network.
        units: Result of :func:`~geomerge.pruning.units.find_units`.

    Returns:
        Removed units in order, by :attr:`Units.layer`; layers without removed units are omitted.
    """
    tensors = network.unravel(w)
    gone: dict[str, list[int]] = {}
    for one in {one.layer: one for one in units.values()}.values():
        used = torch.zeros(one.count, dtype=torch.bool)
        for part in one.parts:
            if part.role is not Role.STATISTICS:
                along = (
                    (tensors[part.tensor] != 0)
                    .movedim(part.dim, 0)
                    .reshape(part.shape[part.dim], -1)
                )
                used |= along.any(dim=1).cpu()[part.indices].any(dim=1)
        if not used.all():
            gone[one.layer] = torch.nonzero(~used).flatten().tolist()
    return gone


def shrink(
    network: Network,
    w: Tensor,  # (n,)
    removed: Mapping[str, Sequence[int]],
    example: Batch,  # (B, ...)
) -> nn.Module:
    """Return a smaller copy of the network without given units.

    Its outputs equal those of the network with these units at zero up to rounding; this is checked
    on the example.

    Args:
        network: Network, which is not changed.
        w: Weights of the network.
        removed: Indices of units from 0 by name of a layer; the same units of tied layers are
            removed.
        example: Batch of inputs for the check.

    Returns:
        New module of the same class, in evaluation mode.

    Raises:
        OptionError: If units cannot be removed, a layer would be empty, or the network's code
            depends on its widths, so that a smaller network has other outputs.
    """
    found = find_units(network, example)
    chosen: dict[str, tuple[Units, list[int]]] = {}
    for name, indices in removed.items():
        units = unit_named(found, name)
        before = chosen.get(units.layer, (units, []))[1]
        chosen[units.layer] = (units, units.chosen([*before, *indices]).tolist())
    masked = w.clone()
    left: dict[tuple[str, int], Tensor] = {}  # mask of entries that stay, by (tensor, dimension)
    for units, indices in chosen.values():
        if len(indices) == units.count:
            raise OptionError(
                f"expected at least one unit of layer {units.layer} to stay, got all {units.count} "
                "to remove; keep one"
            )
        units.clear(masked, indices)
        for part in units.parts:
            key = (part.tensor, part.dim)
            stays = left.setdefault(key, torch.ones(part.shape[part.dim], dtype=torch.bool))
            stays[part.indices[indices]] = False
    tensors = {name: tensor.clone() for name, tensor in network.unravel(masked).items()}
    for (name, dim), stays in left.items():
        places = torch.nonzero(stays).flatten().to(w.device)
        tensors[name] = tensors[name].index_select(dim, places)
    small = copy.deepcopy(network.module)
    resize_layers(small, tensors)
    for name, tensor in [*small.named_parameters(), *small.named_buffers()]:
        if name in tensors:
            tensor.data = tensors[name]
    _check_same(network, masked, small, to_device(example, network.device))
    return small


def export_plain(
    module: nn.Module,
    example: Batch,  # (B, ...)
    path: Path | str,
    logits: Callable[[Any], Tensor] = logits_in,
) -> None:
    """Export a network as a program that requires neither geomerge nor the network's class.

    ``torch.export.load(path).module()`` takes batches of any size. The program's outputs are
    compared with the network's for two batch sizes before the file is written.

    Args:
        module: Network in evaluation mode.
        example: Batch of inputs.
        path: Path of the ``.pt2`` file, which is replaced atomically.
        logits: Function that extracts the logits from the module's output.

    Raises:
        CheckpointError: If the network cannot be exported.
        RunError: If the path has another suffix or cannot be written.
    """
    path = Path(path)
    check_output(path, (".pt2",))
    # A single input would specialise the program to batches of one.
    x = take(concat([example, example]), slice(0, 2))
    buffer = io.BytesIO()
    try:
        with torch.no_grad():
            size = torch.export.Dim("batch")
            args, kwargs = arguments(x)
            shapes: Any = {name: {0: size} for name in kwargs} or tuple({0: size} for _ in args)
            program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes)
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # contains paths and code of this machine
            torch.export.save(program, buffer)
            content = buffer.getvalue()
            again = torch.export.load(io.BytesIO(content)).module()
            three = concat([x, take(x, slice(0, 1))])
            same = all(
                nearly_equal(logits(pass_to(again, batch)), logits(pass_to(module, batch)), _SAME)
                for batch in (x, three)
            )
    except Exception as error:  # torch.export and the network raise errors of any type
        raise CheckpointError(
            f"torch.export cannot export this network ({first_line(error)}); save its weights as "
            ".safetensors instead"
        ) from error
    if not same:
        raise CheckpointError(
            "the program that torch.export made of this network gives other outputs; save its "
            "weights as .safetensors instead"
        )
    write_bytes(path, content)


def _check_same(network: Network, masked: Tensor, small: nn.Module, x: Batch) -> None:
    with torch.no_grad():
        whole = network.head_view(slice(None))
        expected = whole.outputs(masked, x)
        try:
            got = whole.call(small, x)
        except Exception as error:  # the network's code can raise errors of any type
            raise OptionError(
                "the network does not work with fewer units: its own code expects the widths that "
                f"it had ({first_line(error)}); remove units of other layers, or single weights"
            ) from error
    if not nearly_equal(got, expected, _SAME):
        raise OptionError(
            "the network without these units has other outputs than with them at zero; "
            "remove units of other layers, or single weights"
        )
