"""``geomerge check``: all problems of a merge and its estimated cost, before any work."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from geomerge.cli.console import USER_ERROR, duration, fail, show_notes, working
from geomerge.cli.flags import Flags
from geomerge.cli.options import Json
from geomerge.expert_options import DataOptions
from geomerge.merging import Check, MergeOptions, check_merge

__all__ = ["check"]


def check(
    networks: Annotated[list[Path], typer.Argument(help="networks, as for merge")],
    data: Annotated[Mapping[str, Any], Flags(of=DataOptions, without=("download",))],
    options: Annotated[Mapping[str, Any], Flags(of=MergeOptions)],
    base: Annotated[
        Path | None, typer.Option(help="common ancestor that all networks were fine-tuned from")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check the inputs of a merge, and estimate its cost."""
    with working("checking " + " and ".join(map(str, networks))):
        found = check_merge(networks, {**data, **options}, base)
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        _show(found, relax=options["relax"])
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
    if found.gain is not None:
        average, less = found.gain["average"], found.gain["less"]
        print(
            f"predicted drift of the average: {average:.3g}, mean over networks; of the mean in "
            f"the metrics of the sketches: {less / max(average, 1e-300):.0%} less"
        )
    if found.memory is not None:
        held = {k: v for k, v in found.memory.items() if "disk" not in k}
        parts = ", ".join(f"{what} {_size(value)}" for what, value in held.items())
        print(f"memory at most, estimated: {_size(sum(held.values()))} ({parts})")
        path, most = found.memory["path_on_disk"], found.memory["disk_while_walking"]
        print(f"disk, estimated: {_size(path)} for the path, {_size(most)} while walking")
    if found.time is not None:
        whole = duration(found.time["seconds"])
        took = ", ".join(f"{what} {duration(s)}" for what, s in found.time["parts"].items())
        print(f"time, estimated here and now: {whole} ({took}); {found.time['assumed']}")
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
    if "accuracy" in brings:
        right = f"{100 * brings['accuracy']:.1f} % of {brings['examples']}"
        parts.append(f"{right} selection examples right")
    if "loss" in brings:
        loss = brings["loss"]
        parts.append(
            f"loss {loss:.3f}, perplexity {math.exp(loss):.2f} on {brings['examples']} "
            "selection texts"
        )
    return "; ".join(parts)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
