"""One sparsification on disk."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from geomerge.errors import GeomergeError, OptionError, RunError
from geomerge.io.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, torch_bytes
from geomerge.io.files import write_bytes
from geomerge.monitor.progress import Progress
from geomerge.networks.batches import Batch, leaves, pass_to, take, to_device
from geomerge.pruning.flops import count
from geomerge.pruning.masks import prunable, prune_form, zeros
from geomerge.pruning.options import SparsifyOptions
from geomerge.pruning.shrink import export_plain, shrink
from geomerge.pruning.sparsify import Sparsified, sparsify
from geomerge.pruning.surface import surface_of
from geomerge.report.paths import draw_paths
from geomerge.report.sparse import sparsify_report
from geomerge.runs.command import command_line
from geomerge.runs.folder import RunFolder

__all__ = ["run_sparsify"]

_TIMED = 256  # inputs of a batch whose time is taken
_REPEATS = 7
_WHERE_ASKED = ("shrunk.safetensors", "shrunk.pt2", "sparse.pt", "sparse-prune.pt")


def run_sparsify(
    file: str | Path,
    options: SparsifyOptions,
    *,
    out: str | Path | None = None,
    shrunk: bool = False,
    pt: bool = False,
    torch_prune: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> tuple[Path, dict[str, Any], bool]:
    """Sparsify a file's network and write the run: recipe, paths, report, pictures, networks.

    Args:
        file: The network.
        options: How.
        out: The run's folder; default ``runs/NAME-HASH``.
        shrunk: Whether to write the network without its removed units: ``shrunk.safetensors``,
            and ``shrunk.pt2``, a program that plain PyTorch runs.
        pt: Whether to write ``sparse.pt`` beside ``sparse.safetensors``.
        torch_prune: Whether to write ``sparse-prune.pt``, in torch.nn.utils.prune's form.
        on_progress: Called after each point of a walk.

    Returns:
        The folder, its report, and whether it had been finished before (nothing was changed).

    Raises:
        GeomergeError: If inputs, options or data are wrong, or the folder holds another run.
    """
    if shrunk and not options.structured:
        raise OptionError(
            "--shrink takes out whole units, and single weights leave none; give --remove, --flops "
            "or --params"
        )
    command = command_line("sparsify", [file], options, shrink=shrunk)
    checkpoint = load_checkpoint(file)
    recipe = options.recipe({"network": checkpoint.digest})
    run = RunFolder(out, Path(file).stem, recipe, command)
    if run.before:
        wanted = {"shrunk.safetensors": shrunk, "sparse.pt": pt, "sparse-prune.pt": torch_prune}
        for name, asked in wanted.items():
            if asked and not (run.path / name).exists():
                raise RunError(
                    f"{run.path} was finished without {name}; choose another `folder` or remove it"
                )
        return run.outcome
    with run.unfinished(options.device, _WHERE_ASKED) as folder:
        found = sparsify(checkpoint, options, folder, on_progress, folder / "work")
        report = sparsify_report(found, recipe)
        sparse = found.checkpoint
        for suffix in (".safetensors", ".pt") if pt else (".safetensors",):
            save_checkpoint(folder / f"sparse{suffix}", sparse)
        if torch_prune:
            network, w = found.subject.network, found.chosen.weights
            state = prune_form(network, w, ~zeros(w, prunable(network)))
            write_bytes(folder / "sparse-prune.pt", torch_bytes(state))
        if shrunk:
            try:
                report["shrunk"] = _write_shrunk(folder, found, sparse)
            except GeomergeError as error:  # the sparse network is there all the same
                report["notes"].append(f"not shrunk: {error}")
        draw_paths(surface_of(found, folder), folder / "paths.png")
        run.finish(folder, report, tasks={"network": found.subject.task})
    return run.outcome


def _write_shrunk(folder: Path, found: Sparsified, sparse: Checkpoint) -> dict[str, Any]:
    subject, w = found.subject, found.chosen.weights
    x = subject.task.select.inputs.batch(slice(0, _TIMED))
    few = take(x, slice(0, 2))
    small = shrink(subject.network, w, found.removed, few)
    state = {name: value.detach().cpu() for name, value in small.state_dict().items()}
    save_checkpoint(folder / "shrunk.safetensors", Checkpoint(state, sparse.meta))
    export_plain(copy.deepcopy(small).cpu(), to_device(few, "cpu"), folder / "shrunk.pt2")
    masked = subject.network.module_at(w).requires_grad_(False)
    with torch.no_grad():
        one, other = (subject.network.call(module, x) for module in (masked, small))
    slow, fast = _seconds([masked, small], x)
    return {
        "before": asdict(count(masked, x)),
        "after": asdict(count(small, x)),
        "difference": float((one - other).norm() / one.norm()),
        "speed_up": slow / fast,
        "batch": len(one),
    }


def _finish(x: Batch) -> None:
    """Wait for an accelerator: it works while Python goes on."""
    device = leaves(x)[0].device
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(modules: Sequence[nn.Module], x: Batch) -> list[float]:
    """Return the median time of a pass of each, taken in turns."""
    times: list[list[float]] = [[] for _ in modules]
    with torch.no_grad():
        for _ in range(_REPEATS):
            for module, taken in zip(modules, times, strict=True):
                _finish(x)
                start = time.perf_counter()
                pass_to(module, x)
                _finish(x)
                taken.append(time.perf_counter() - start)
    return [median(taken) for taken in times]
