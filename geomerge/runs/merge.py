"""Runs of merges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from geomerge.certificate.certificate import certificate
from geomerge.errors import RunError
from geomerge.expert import Expert
from geomerge.expert_options import DataOptions
from geomerge.io.checkpoint import Checkpoint, save_checkpoint
from geomerge.loading import load_base, load_experts
from geomerge.merging import (
    MergeOptions,
    MergeResult,
    Seen,
    comparison,
    curves,
    look_at,
    merge,
)
from geomerge.merging.model_folders import write_model_folders
from geomerge.metrics.sketch import SKETCH_FILE
from geomerge.monitor.progress import Progress
from geomerge.networks.hugging_face import load_network
from geomerge.options import recorded
from geomerge.processes import alone, first_text, together
from geomerge.report import merge_report, write_examples
from geomerge.runs.command import command_line
from geomerge.runs.folder import RunFolder, data_of_recipe, input_digests, sketch_files

__all__ = ["run_merge"]


def run_merge(
    files: Sequence[str | Path],
    options: MergeOptions | None = None,
    data: DataOptions | None = None,
    *,
    base: str | Path | None = None,
    out: str | Path | None = None,
    pt: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[Path, dict[str, Any], bool]:
    """Merge files and write the run: recipe, path, report, pictures, merged network.

    Args:
        files: Files of the networks.
        options: Options of the merge.
        data: Tasks, inputs, sketches and architecture of the networks.
        base: File or folder of the network that all were fine-tuned from.
        out: Folder of the run; default ``runs/A-B-HASH`` of their names.
        pt: Whether ``merged.pt`` is written besides ``merged.safetensors``.
        progress: Function called after each step.

    In a process group the first process writes the run; the others return an empty report.

    Returns:
        The folder, its report, and whether it had been finished before (nothing was changed).

    Raises:
        GeomergeError: If inputs, options or data are wrong, or the folder holds another run.
    """
    options, data = options or MergeOptions(), data or DataOptions()
    networks = [load_network(file, data.reading.files, base) for file in files]
    ancestors = [load_base(base, networks, data)]
    digests = input_digests(networks, data, ancestors[0])
    files_of = sketch_files(networks, data)
    recipe = {
        "merge": {**recorded(data, "sketch"), **recorded(options)},
        "inputs": digests,
        **data_of_recipe(networks, data),
    }
    command = command_line("merge", files, (data, options), base=base and Path(base))
    stem = "-".join(Path(file).stem for file in files)

    def loaded() -> list[Expert]:
        experts = load_experts(networks, data, output=options.measure.output)
        networks.clear()  # the experts have copies of these weights
        return experts

    def walked(folder: Path) -> MergeResult:
        return merge(  # which has copies of the ancestor's weights as well
            loaded(), options, base=ancestors.pop(), folder=folder / "path", work=folder / "work",
            progress=progress,
        )  # fmt: skip

    with together() as mates:
        if mates is not None and mates.rank:
            told = mates.tell("")
            if told:
                walked(Path(told))
            return Path(told), {}, not told
        run = RunFolder(out, stem, recipe, command)
        if run.before:
            first_text("")
            if pt and not (run.path / "merged.pt").exists():
                raise RunError(
                    f"{run.path} was finished without merged.pt; write it with geomerge path "
                    f"{run.path}"
                )
            return run.outcome
        with run.unfinished(data.device, ["merged.pt"]) as folder:
            first_text(str(folder.absolute()))
            merged = walked(folder)
            with alone():
                report, seen = _measured(merged, recipe, folder / "work" / "beside", progress)
                _write_network(folder, merged.checkpoint(), report, pt)
                report["base"] = None if base is None else Path(base).resolve().name
                ancestry = None if base is None else Path(base)
                report["folders"] = write_model_folders(folder, merged, ancestry)
                write_examples(folder, seen)
                sketches = {name: _stated(Path(file)) for name, file in files_of.items()}
                run.finish(
                    folder,
                    report,
                    tasks={expert.name: expert.task for expert in merged.space},
                    certify=partial(certificate, folder, merged, sketches),
                )
    return run.outcome


def _stated(sketch: Path) -> str:
    """Return the name of a sketch's file, with its folder where each network's has the same."""
    return str(Path(*sketch.parts[-2:])) if sketch.name == SKETCH_FILE else sketch.name


def _measured(
    merged: MergeResult,
    recipe: dict[str, Any],
    work: Path,
    progress: Callable[[Progress], None] | None,
) -> tuple[dict[str, Any], Seen]:
    """Return the report of a merge, and its analysis with the images of examples."""
    rows = comparison(merged, progress, work)
    seen = look_at(merged)
    return merge_report(merged, recipe, rows, curves(merged), seen), seen


def _write_network(folder: Path, checkpoint: Checkpoint, report: dict[str, Any], pt: bool) -> None:
    meta = {
        **checkpoint.meta,
        "merged": {
            "recipe": report["recipe"],
            "preset": report["preset"],
            "crossover": report["crossover"],
        },
    }
    named = Checkpoint(checkpoint.weights, meta)
    save_checkpoint(folder / "merged.safetensors", named)
    if pt:
        save_checkpoint(folder / "merged.pt", named)
