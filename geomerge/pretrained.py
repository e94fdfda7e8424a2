"""Networks of finished runs and files, as experts and as plain PyTorch modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from geomerge.errors import OptionError, RunError
from geomerge.expert import Expert
from geomerge.io.reading import FileOptions
from geomerge.networks.hugging_face import load_network
from geomerge.networks.network import check_device
from geomerge.paths.path import WeightPath

__all__ = ["from_pretrained", "stored_expert"]


def from_pretrained(
    source: str | Path,
    *,
    t: float | None = None,
    device: str | torch.device = "cpu",
    arch: str | Callable[[], nn.Module] | None = None,
    weights_key: str | None = None,
    leave_out: Sequence[str] = (),
) -> nn.Module:
    """Load a network, ready to call.

    It takes inputs as its tasks give them, normalised. How, and which outputs are a task's, stands
    in the run's card, ``README.md``, and in ``gm.load_checkpoint(file).meta``: ``"tasks"`` or
    ``"normalisation"``, and ``"head"``. A network recorded as ``module:factory`` is made by that
    callable, which is imported.

    Args:
        source: Folder of a finished merge, sparsification or reconfiguration, whose result is
            taken (of a reconfiguration the last configuration), or a network's file.
        t: Point of the run's path instead: 0 where it starts, 1 where it ends.
        device: Device of the module.
        arch: Architecture, where the file does not record it and the weights leave it open: a name,
            ``module:factory``, or a callable that returns the module.
        weights_key: Key of the state dict in a file that holds several.
        leave_out: Names of tensors of a file that are left out, such as ``"aux.*"``.

    Returns:
        The module in evaluation mode; its parameters take gradients, so that it can be trained on.

    Raises:
        RunError: If the folder is not of such a run.
        CheckpointError: If the file cannot be read or is of no architecture that is known.
        OptionError: If there is no such point, device or architecture.
    """
    check_device(device)
    files = FileOptions(weights_key, tuple(leave_out))
    return stored_expert(source, t=t, arch=arch, files=files).module().to(device)


def stored_expert(
    source: str | Path,
    *,
    t: float | None = None,
    arch: str | Callable[[], nn.Module] | None = None,
    files: FileOptions | None = None,
) -> Expert:
    """Load a network that a run or a file holds, without data.

    Args:
        source: Folder of a finished run, or a file, as :func:`from_pretrained` takes them.
        t: Point of the run's path instead of its result.
        arch: Architecture, where neither the run nor the file records it.
        files: Options of reading a file.

    Raises:
        GeomergeError: If there is no such network, or it cannot be rebuilt.
    """
    source = Path(source)
    if not source.suffix and not source.exists():
        raise RunError(
            f"no folder or file {source}; name a finished run's folder, or a .safetensors or .pt "
            "file (nothing is downloaded)"
        )
    if t is None:
        return Expert.from_checkpoint(load_network(source, files), arch)
    if not (source / "path").is_dir():
        raise OptionError(
            f"{source} has no path to take t = {t} of; name the folder of a merge or sparsify run"
        )
    return WeightPath(source / "path", arch=arch).expert(t)
