"""Runs of sparsifications."""

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
from geomerge.expert_options import ExpertOptions
from geomerge.io.checkpoint import Checkpoint, save_checkpoint, torch_bytes
from geomerge.io.files import write_bytes
from geomerge.loading import load_expert
from geomerge.monitor.progress import Progress
from geomerge.networks.batches import Batch, leaves, pass_to, take, to_device
from geomerge.networks.hugging_face import load_network
from geomerge.options import recorded
from geomerge.processes import alone, first_text, together
from geomerge.pruning.flops import count
from geomerge.pruning.masks import prunable, prune_form, zeros
from geomerge.pruning.options import SparsifyFiles, SparsifyOptions
from geomerge.pruning.shrink import export_plain
from geomerge.pruning.sparsify import SparsifyResult, sparsify
from geomerge.pruning.surface import surface_of
from geomerge.report.paths import draw_paths
from geomerge.report.sparse import sparsify_report
from geomerge.runs.command import command_line
from geomerge.runs.folder import RunFolder, data_of_recipe

__all__ = ["run_sparsify"]

_TIMED = 256  # inputs of the batch that is timed
_REPEATS = 7
_ON_DEMAND = ("shrunk.safetensors", "shrunk.pt2", "sparse.pt", "sparse-prune.pt")


def run_sparsify(
    file: str | Path,
    options: SparsifyOptions,
    data: ExpertOptions | None = None,
    *,
    files: SparsifyFiles | None = None,
    out: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[Path, dict[str, Any], bool]:
    """Sparsify a file's network and write the run: recipe, paths, report, pictures, networks.

    Args:
        file: File of the network.
        options: Options of the sparsification.
        data: Task and architecture of the network; None takes those that the file records.
        files: Files that are written on demand: ``shrunk.safetensors`` and ``shrunk.pt2``, a
            program that plain PyTorch runs, ``sparse.pt``, ``sparse-prune.pt``.
        out: Folder of the run; None takes ``runs/NAME-HASH``.
        progress: Function that is called after each point of a walk.

    Returns:
        Folder, its report, and whether the run was finished before, so that nothing was changed.

    Raises:
        GeomergeError: If inputs, options or data cannot be used, or the folder holds another run.
    """
    data, files = data or ExpertOptions(), files or SparsifyFiles()
    if files.shrink and not options.goal.removes_units:
        raise OptionError(
            "`shrink` removes whole units, and single weights leave none; give `remove`, `flops` "
            "or `params`"
        )
    command = command_line("sparsify", [file], (data, options), shrink=files.shrink)
    checkpoint = load_network(file, data.reading.files)
    recipe = {
        "sparsify": {**recorded(data), **options.recorded()},
        "inputs": {"network": checkpoint.digest},
        **data_of_recipe([checkpoint], data),
    }
    with together() as mates:
        if mates is not None and mates.rank:
            told = mates.tell("")
            if told:
                expert, folder = load_expert(checkpoint, data), Path(told)
                sparsify(expert, options, folder=folder, work=folder / "work")
            return Path(told), {}, not told
        run = RunFolder(out, Path(file).stem, recipe, command)
        if run.before:
            first_text("")
            for name in files.names:
                if not (run.path / name).exists():
                    raise RunError(
                        f"{run.path} was finished without {name}; choose another `folder` or "
                        "remove it"
                    )
            return run.outcome
        expert = load_expert(checkpoint, data)
        with run.unfinished(data.device, _ON_DEMAND) as folder:
            first_text(str(folder.absolute()))
            result = sparsify(
                expert, options, folder=folder, work=folder / "work", progress=progress
            )
            with alone():
                report = _written(folder, result, files, recipe)
                run.finish(folder, report, tasks={"network": expert.task})
    return run.outcome


def _written(
    folder: Path, result: SparsifyResult, files: SparsifyFiles, recipe: dict[str, Any]
) -> dict[str, Any]:
    """Write the networks and pictures of a sparsification and return its report."""
    report = sparsify_report(result, recipe).to_json()
    result.expert.save(folder / "sparse.safetensors")
    if files.pt:
        result.expert.save(folder / "sparse.pt")
    if files.torch_prune:
        network, w = result.expert.network, result.expert.weights
        state = prune_form(network, w, ~zeros(w, prunable(network)))
        write_bytes(folder / "sparse-prune.pt", torch_bytes(state))
    if files.shrink:
        try:
            report["shrunk"] = _write_shrunk(folder, result)
        except GeomergeError as error:  # the sparse network is written all the same
            report["notes"].append(f"not shrunk: {error}")
    draw_paths(surface_of(result), folder / "paths.png")
    return report


def _write_shrunk(folder: Path, result: SparsifyResult) -> dict[str, Any]:
    expert, small = result.expert, result.shrunk()
    assert small is not None
    x = result.problem.task.select.inputs.batch(slice(0, _TIMED))
    few = take(x, slice(0, 2))
    state = {name: value.detach().cpu() for name, value in small.state_dict().items()}
    save_checkpoint(folder / "shrunk.safetensors", Checkpoint(state, expert.meta))
    export_plain(copy.deepcopy(small).cpu(), to_device(few, "cpu"), folder / "shrunk.pt2")
    masked = expert.module().eval().requires_grad_(False)
    with torch.no_grad():
        one, other = (expert.network.call(module, x) for module in (masked, small))
    slow, fast = _seconds([masked, small], x)
    return {
        "before": asdict(count(masked, x)),
        "after": asdict(count(small, x)),
        "difference": float((one - other).norm() / one.norm()),
        "speed_up": slow / fast,
        "batch": len(one),
    }


def _finish(x: Batch) -> None:
    """Synchronise with the accelerator, whose kernels run asynchronously."""
    device = leaves(x)[0].device
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(modules: Sequence[nn.Module], x: Batch) -> list[float]:
    """Return the median seconds of a pass of each module, measured in turns."""
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
