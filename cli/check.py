"""``geomerge check``: everything that is in the way of a merge, at once, before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geomerge.cli.console import USER_ERROR, fail
from geomerge.cli.options import Arch, DataRoot, Device, Json, Normalisations, Output, Points

if TYPE_CHECKING:
    from geomerge.checking import Check

__all__ = ["check"]


def check(
    networks: Annotated[list[Path], typer.Argument(help="The networks, as merge takes them.")],
    manifold: Annotated[
        list[str] | None, typer.Option(help="Task whose inputs the walk may use.")
    ] = None,
    sketch: Annotated[
        list[str] | None, typer.Option(help="b=FILE: the sketch of a network.")
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="b=NAME: task of a network.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="joint, sketch or paper; default what the data allows.")
    ] = None,
    metric: Annotated[str, typer.Option(help="kronecker, exact, gram or euclidean.")] = "kronecker",
    output: Output = "hellinger",
    head: Annotated[str, typer.Option(help="shared, offset or separate.")] = "shared",
    bn: Annotated[
        str | None, typer.Option(help="keep or re-estimate BatchNorm statistics.")
    ] = None,
    damping: Annotated[float | None, typer.Option(help="mu; default several.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of each walk.")] = None,
    points: Points = 64,
    arch: Arch = None,
    normalisation: Normalisations = None,
    device: Device = "cpu",
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Say all that is wrong with a merge's inputs, or what it would do and cost."""
    from geomerge.checking import check_merge

    options: dict[str, Any] = {
        "manifold": tuple(manifold or ()),
        "sketch": tuple(sketch or ()),
        "task": tuple(task or ()),
        "preset": preset,
        "metric": metric,
        "output": output,
        "head": head,
        "bn": bn,
        "damping": damping,
        "steps": steps,
        "points": points,
        "arch": arch,
        "normalisation": tuple(normalisation or ()),
        "device": device,
        "data_root": data_root,
    }
    found = check_merge(networks, options)
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        _show(found)
    if found.problems:
        raise typer.Exit(USER_ERROR)


def _show(found: Check) -> None:
    for name, brings in found.networks.items():
        print(f"{name}: {_brings(brings)}")
    for note in found.notes:
        print(f"note: {note}")
    if found.problems:
        for problem in found.problems:
            fail(problem)
        print(f"problems in the way of this merge: {len(found.problems)}")
        return
    print(f"preset {found.preset}")
    if found.memory is not None:
        held = {k: v for k, v in found.memory.items() if "disk" not in k}
        parts = ", ".join(f"{what} {_size(value)}" for what, value in held.items())
        print(f"memory, estimated: {_size(sum(held.values()))} and activations ({parts})")
        path, most = found.memory["path_on_disk"], found.memory["disk_while_walking"]
        print(f"disk, estimated: {_size(path)} for the path, {_size(most)} while walking")
    if found.time is not None:
        parts = ", ".join(f"{count} {what}" for what, count in found.time["steps"].items())
        print(
            f"time, estimated: {_duration(found.time['seconds'])} if every step is taken ({parts}; "
            f"{1000 * found.time['seconds_per_step']:.3g} ms each here and now); metrics and picks "
            "come on top"
        )
    print("nothing is in the way of this merge")


def _brings(brings: dict[str, Any]) -> str:
    parts = [f"{brings['file']}, {brings['architecture']}, {brings['weights']} weights"]
    task = brings["task"]
    labels = "" if brings["labels"] else ", not measured"
    parts.append(f"trained for {task}{labels}" if task else "its task is not known")
    if brings["manifold"]:
        parts.append(f"{brings['inputs'] or 'no'} inputs of {brings['manifold']}")
    else:
        parts.append("no inputs")
    sketch = brings["sketch"]
    parts.append(
        f"a sketch ({sketch['inputs']} inputs of {sketch['task']})" if sketch else "no sketch"
    )
    return "; ".join(parts)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
