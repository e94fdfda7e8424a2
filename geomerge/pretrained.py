"""A run's folder, or a network's file -> the network as a plain PyTorch module."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from geomerge.errors import OptionError, RunError
from geomerge.io.checkpoint import SUFFIXES, load_checkpoint
from geomerge.io.files import parse_json, plain_file
from geomerge.networks.architectures import rebuild_network
from geomerge.networks.network import check_device
from geomerge.paths.path import WeightPath

__all__ = ["from_pretrained", "last_configuration"]

_RESULTS = ("merged.safetensors", "sparse.safetensors")  # of a merge, of a sparsification


def from_pretrained(
    source: str | Path,
    *,
    t: float | None = None,
    device: str | torch.device = "cpu",
    arch: str | None = None,
) -> nn.Module:
    """Load a network, ready to call.

    It takes inputs as its tasks give them, normalised. How, and which outputs are a task's, stands
    in the run's card, ``README.md``, and in ``gm.load_checkpoint(file).meta``: ``"tasks"`` or
    ``"normalisation"``, and ``"head"``. A network recorded as ``module:factory`` is made by that
    callable, which is imported.

    Args:
        source: The folder of a finished merge, sparsification or reconfiguration, whose result is
            taken (of a reconfiguration the last configuration), or a network's ``.safetensors``,
            ``.pt`` or ``.pth`` file.
        t: A point of the run's path instead: 0 where it starts, 1 where it ends.
        device: Where the module is.
        arch: Its architecture, or ``module:factory``, where the file does not say and the weights
            do not tell.

    Returns:
        The module in evaluation mode; its parameters take gradients, so that it can be trained on.

    Raises:
        RunError: If the folder is not of such a run.
        CheckpointError: If the file cannot be read or is of no architecture that is known.
        OptionError: If there is no such point, device or architecture.
    """
    source = Path(source)
    check_device(device)
    if source.is_dir():
        file = _result(source)
    elif source.suffix in SUFFIXES or source.exists():
        file = source
    else:
        raise RunError(
            f"no folder or file {source}; name a finished run's folder, or a .safetensors or .pt "
            "file (nothing is downloaded)"
        )
    if t is None:
        checkpoint = load_checkpoint(file)
    elif source.is_dir() and (source / "path").is_dir():
        checkpoint = WeightPath(source / "path").checkpoint(t)
    else:
        raise OptionError(
            f"{source} has no path to take t = {t} of; name the folder of a merge or sparsify run"
        )
    architecture = arch or checkpoint.meta.get("architecture")
    module = rebuild_network(checkpoint.weights, architecture, checkpoint.source)
    return module.requires_grad_(True).to(device)


def last_configuration(run: Path) -> Path:
    """Return the file of the network that a reconfiguration ended with.

    Args:
        run: Its folder.

    Raises:
        RunError: If the folder is not of a finished reconfiguration.
    """
    try:
        report = parse_json((run / "report.json").read_text(encoding="utf-8"))
        return plain_file(run, f"{report['configurations'][-1]['name']}.safetensors")
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise RunError(
            f"{run} is not the folder of a sparsify or reconfigure run; name such a folder or a "
            "network's file"
        ) from error


def _result(run: Path) -> Path:
    """Return the file of a run's result.

    Raises:
        RunError: If it has none.
    """
    found = next((run / name for name in _RESULTS if (run / name).is_file()), None)
    if found is not None:
        return found
    try:
        return last_configuration(run)
    except RunError as error:
        raise RunError(
            f"{run} holds no network of a finished merge, sparsify or reconfigure run; name such a "
            "run's folder, or a network's file"
        ) from error
