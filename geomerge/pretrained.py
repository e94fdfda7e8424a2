"""Networks of finished runs and files, as experts and as plain PyTorch modules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from geomerge.errors import OptionError, RunError
from geomerge.expert import Expert
from geomerge.io.checkpoint import SUFFIXES
from geomerge.io.files import parse_json, plain_file
from geomerge.networks.hugging_face import load_network, model_folder
from geomerge.networks.network import check_device
from geomerge.paths.path import WeightPath

__all__ = ["from_pretrained", "last_configuration", "stored_expert"]

_RESULTS = ("merged.safetensors", "sparse.safetensors")  # of a merge, of a sparsification


def from_pretrained(
    source: str | Path,
    *,
    t: float | None = None,
    device: str | torch.device = "cpu",
    arch: str | Callable[[], nn.Module] | None = None,
) -> nn.Module:
    """Load a network, ready to call.

    It takes inputs as its tasks give them, normalised. How, and which outputs are a task's, stands
    in the run's card, ``README.md``, and in ``gm.load_checkpoint(file).meta``: ``"tasks"`` or
    ``"normalisation"``, and ``"head"``. A network recorded as ``module:factory`` is made by that
    callable, which is imported.

    Args:
        source: Folder of a finished merge, sparsification or reconfiguration, whose result is
            taken (of a reconfiguration the last configuration), or a network's ``.safetensors``,
            ``.pt`` or ``.pth`` file.
        t: Point of the run's path instead: 0 where it starts, 1 where it ends.
        device: Device of the module.
        arch: Architecture, where the file does not say and the weights do not tell: a name,
            ``module:factory``, or a callable that returns the module.

    Returns:
        The module in evaluation mode; its parameters take gradients, so that it can be trained on.

    Raises:
        RunError: If the folder is not of such a run.
        CheckpointError: If the file cannot be read or is of no architecture that is known.
        OptionError: If there is no such point, device or architecture.
    """
    check_device(device)
    return stored_expert(source, t=t, arch=arch).module().to(device)


def stored_expert(
    source: str | Path,
    *,
    t: float | None = None,
    arch: str | Callable[[], nn.Module] | None = None,
) -> Expert:
    """Load a network that a run or a file holds, without data.

    Args:
        source: Folder of a finished run, or a file, as :func:`from_pretrained` takes them.
        t: Point of the run's path instead of its result.
        arch: Architecture, where the run or the file does not say.

    Raises:
        GeomergeError: If there is no such network, or it cannot be rebuilt.
    """
    source = Path(source)
    if not source.is_dir() and source.suffix not in SUFFIXES and not source.exists():
        raise RunError(
            f"no folder or file {source}; name a finished run's folder, or a .safetensors or .pt "
            "file (nothing is downloaded)"
        )
    if t is None:
        plain = not source.is_dir() or model_folder(source) is not None
        return Expert.from_checkpoint(load_network(source if plain else _result(source)), arch)
    if not (source / "path").is_dir():
        raise OptionError(
            f"{source} has no path to take t = {t} of; name the folder of a merge or sparsify run"
        )
    return WeightPath(source / "path", arch=arch).expert(t)


def last_configuration(run: Path) -> Path:
    """Return the file of the network that a reconfiguration ended with.

    Args:
        run: Folder of the run.

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
    result = next((run / name for name in _RESULTS if (run / name).is_file()), None)
    if result is not None:
        return result
    try:
        return last_configuration(run)
    except RunError as error:
        raise RunError(
            f"{run} holds no network of a finished merge, sparsify or reconfigure run; name such a "
            "run's folder, or a network's file"
        ) from error
