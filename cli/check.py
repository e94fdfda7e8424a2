"""``geomerge check``: problems and cost of a merge, before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geomerge.cli.console import USER_ERROR, fail, show_notes
from geomerge.cli.options import Arch, DataRoot, Device, Json, Normalisations, Output, Points, Seed

if TYPE_CHECKING:
    from geomerge.merging.check import Check

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
    align: Annotated[str, typer.Option(help="weights or activations; none.")] = "none",
    damping: Annotated[float | None, typer.Option(help="mu; default several.")] = None,
    learn: Annotated[str | None, typer.Option(help="damping: adjust it along one walk.")] = None,
    budget: Annotated[
        list[str] | None, typer.Option(help="b=0.02, b/3=0.02, b/*=0.02: how much worse.")
    ] = None,
    relax: Annotated[bool, typer.Option("--relax", help="Relax the finished path.")] = False,
    keep_zeros: Annotated[
        bool, typer.Option("--keep-zeros", help="Weights that are zero in all stay so.")
    ] = False,
    learning_rate: Annotated[float | None, typer.Option(help="Of the walk's first step.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of each walk.")] = None,
    pick: Annotated[
        str | None, typer.Option(help="max-min, balanced, equal-drift, or 'a>=0.80'.")
    ] = None,
    memory: Annotated[str | None, typer.Option(help="Most memory that may be held.")] = None,
    points: Points = 64,
    seed: Seed = 0,
    arch: Arch = None,
    normalisation: Normalisations = None,
    device: Device = "cpu",
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Say what is wrong with a merge's inputs, or what it costs."""
    from geomerge.merging.check import check_merge

    options: dict[str, Any] = {
        "manifold": tuple(manifold or ()),
        "sketch": tuple(sketch or ()),
        "task": tuple(task or ()),
        "preset": preset,
        "metric": metric,
        "output": output,
        "head": head,
        "bn": bn,
        "align": align,
        "damping": damping,
        "learn": learn,
        "budget": tuple(budget or ()),
        "relax": relax,
        "keep_zeros": keep_zeros,
        "learning_rate": learning_rate,
        "steps": steps,
        "pick": pick,
        "memory": memory,
        "points": points,
        "seed": seed,
        "arch": arch,
        "normalisation": tuple(normalisation or ()),
        "device": device,
        "data_root": data_root,
    }
    found = check_merge(networks, options)
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        _show(found, relax)
    if found.problems:
        raise typer.Exit(USER_ERROR)


def _show(found: Check, relax: bool) -> None:
    for name, brings in found.networks.items():
        print(f"{name}: {_brings(brings)}")
    show_notes(found.notes)
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
        whole = _duration(found.time["seconds"])
        took = ", ".join(f"{what} {_duration(s)}" for what, s in found.time["parts"].items())
        print(f"time, estimated here and now: {whole} ({took})")
        walks = ", ".join(f"{count} {what}" for what, count in found.time["steps"].items())
        print(f"steps, at most: {walks}")
        if relax:
            print("note: --relax comes on top of the time")
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
