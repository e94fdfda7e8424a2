"""``geomerge sketch``: measurement of a network's sketch on its task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from geomerge.cli.console import duration, working
from geomerge.cli.flags import Flags
from geomerge.cli.options import Force, NetworkFile, Normalisation
from geomerge.data import parse_normalisation
from geomerge.errors import OptionError
from geomerge.expert import Expert
from geomerge.expert_options import ExpertOptions
from geomerge.io.files import check_output
from geomerge.metrics import save_sketch
from geomerge.metrics.outputs import OUTPUTS
from geomerge.metrics.sketch import SHARE, SKETCH_FILE, SUFFIXES, sketch_seconds
from geomerge.networks.hugging_face import load_network, model_folder
from geomerge.options import at_least, check_options, option, positive

__all__ = ["sketch"]

_LISTED = 8  # names of a list that are printed; those of large networks would fill pages


@dataclass(frozen=True)
class _SketchOptions:
    output: str = option(
        "hellinger", "output whose change the metric measures", choices=OUTPUTS, group="metric"
    )
    inputs: int = option(10_000, "largest number of inputs", check=at_least(1), group="metric")
    seed: int = option(0, "seed of the choice of inputs", group="metric")
    sketch_size: float = option(
        SHARE, "bytes of the sketch, as a share of those of the weights in float32",
        check=positive, group="output",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_options(self)


def sketch(
    network: NetworkFile,
    manifold: Annotated[
        str,
        typer.Option(help="task of the network; its labels are not used", rich_help_panel="data"),
    ],
    options: _SketchOptions,
    data: Annotated[ExpertOptions, Flags(without=("manifold", "normalisation"))],
    out: Annotated[
        Path | None,
        typer.Option(
            help=f"file of the sketch: .safetensors; default {SKETCH_FILE} in the network's "
            "folder, where merge finds it",
            rich_help_panel="output",
        ),
    ] = None,
    normalisation: Normalisation = None,
    force: Force = False,
) -> None:
    """Measure a network's sketch, for merges without its data."""
    folder = model_folder(network)
    if out is None and folder is None and network.exists():
        raise OptionError(
            f"{network} is no folder for its sketch; name a file with `out`, such as "
            f"{network.stem}-sketch.safetensors"
        )
    out = out or (folder or Path()) / SKETCH_FILE
    check_output(out, SUFFIXES, replace=force)
    with working(f"reading {network}") as show:
        checkpoint = load_network(network, data.reading.files)
        expert = Expert.from_checkpoint(checkpoint, data.arch, sketch=False, device=data.device)
        numbers = parse_normalisation(normalisation) if normalisation else None
        task = expert.load_task(
            manifold, numbers, data.data_root, data.download, data.reading.examples
        )
        ready = expert.with_task(task)
        seconds = sketch_seconds(
            ready.network, ready.weights, ready.inputs or task.train.inputs, options.output,
            options.inputs,
        )  # fmt: skip
        show(f"measuring {network}, estimated {duration(seconds)}")
        made = ready.with_sketch(inputs=options.inputs, output=options.output, seed=options.seed)
    assert made.sketch is not None
    tensors, meta = save_sketch(out, made.sketch, options.sketch_size)
    size = sum(t.nbytes for t in tensors.values()) / (4 * expert.network.n)
    print(f"{out}: {meta['inputs']} inputs of {manifold}, {size:.2f} x the weights' bytes")
    few = {name: kept for name, kept in meta["kept"].items() if kept < 1}
    lowest = sorted(few, key=lambda name: few[name])
    rest = lowest[_LISTED:]
    for name, kept in few.items():
        if name not in rest:
            print(f"  {name}: truncated, {100 * kept:.2f} % of its trace kept exactly")
    if rest:
        least = 100 * few[rest[0]]
        print(f"  {len(rest)} more layers truncated, at least {least:.2f} % kept exactly")
    if meta["diagonal"]:
        named, more = meta["diagonal"][:_LISTED], len(meta["diagonal"]) - _LISTED
        print(f"  diagonal only: {', '.join(named)}" + (f" and {more} more" if more > 0 else ""))
