"""Checks of a certificate's claims by repeating the measurements on the files.

A check returns sentences that describe violations, none if the claim holds. It raises an error if
it cannot be made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from geomerge.certificate.evidence import (
    bracket,
    count,
    leg_changes,
)
from geomerge.certificate.self_tests import (
    MERGED,
    STANDS,
    STAYS,
    same_network,
    step_self_tests,
)
from geomerge.certificate.stored_run import NotStoredError, StoredRun
from geomerge.data import Split
from geomerge.data.classes import split_classes
from geomerge.data.digest import data_digests
from geomerge.data.sources import NAMED
from geomerge.errors import GeomergeError
from geomerge.evaluation.drift import function_change, predicted_change
from geomerge.io.files import parse_json
from geomerge.merging.curve import POINTS, curve_of, places_of
from geomerge.metrics import MetricOptions
from geomerge.networks.hugging_face import load_network, network_digest

__all__ = ["Check", "checks"]

Check: TypeAlias = Callable[[], list[str]]

_EXACT = 1e-9  # relative difference of numbers computed from the same bytes
_CLOSE = 1e-4  # relative difference of numbers that depend on the machine's rounding


def checks(run: StoredRun) -> Iterator[tuple[str, Check]]:
    """Yield the name and the check of every claim of a run."""
    given = run.certificate
    yield "report.json", lambda: run.report_changed
    yield "stored files", lambda: run.files_changed
    yield "recipe", partial(_recipe, run)
    for name in _names(given.get("inputs")):
        yield f"input {name}", partial(_input, run, name)
    for name in _names(given.get("data")):
        yield f"data of {name}", partial(_data, run, name)
    for name in _names(given.get("identity")):
        yield f"identity: {name}", partial(_identity, run, name)
    yield "path", partial(_path, run)
    for name in _names(given.get("accuracies")):
        yield f"accuracy of {name}", partial(_accuracy, run, name)
    yield "bracket", partial(_bracket, run)
    for name in _names(given.get("data")):
        yield f"drift from {name}", partial(_drift, run, name)
    yield "curve", partial(_curve, run)
    for name in _names(given.get("data")):
        if _sketched(run.report.get("networks"), name):
            yield f"drift from {name} by its sketch", partial(_predicted, run, name)


def _names(section: Any) -> list[str]:
    return list(section) if isinstance(section, dict) else []


def _recipe(run: StoredRun) -> list[str]:
    stored = parse_json((run.folder / "recipe.json").read_bytes())
    wrong = _differences("recipe.json", run.certificate["recipe"], stored)
    return wrong + _differences(
        "the report's recipe", run.certificate["recipe"], run.report["recipe"]
    )


def _input(run: StoredRun, name: str) -> list[str]:
    file = run.file(name)
    same = network_digest(file) == run.certificate["inputs"][name]
    return [] if same else [f"{file} is not the file that was merged"]


def _data(run: StoredRun, name: str) -> list[str]:
    given = run.certificate["data"][name]
    try:
        digests = data_digests(run.task(name), run.manifold(name))
    except GeomergeError as error:
        names = [split_classes(part["name"])[0] for part in given.values() if part]
        if any(name not in NAMED and Path(name).exists() for name in names):
            return [str(error)]  # the file exists but can no longer be read
        raise
    return _differences("", given, digests)


def _identity(run: StoredRun, name: str) -> list[str]:
    path = run.path
    if name in (STAYS, STANDS):
        own_name = next(k for k, data in run.certificate["data"].items() if data["manifold"])
        inputs, recipe = run.manifold(own_name), run.recipe
        assert inputs is not None
        steps = step_self_tests(
            run.head(own_name),
            run.weights(own_name),
            inputs,
            MetricOptions(run.report["metric"], recipe["output"]),
            recipe["seed"],
        )
        return [] if steps[name] else ["it fails on this machine"]
    if name == MERGED:
        same = same_network(run.merged, path.checkpoint(path.crossover))
        return [] if same else ["the weights differ"]
    own_name = path.ends[0] if "starts" in name else path.ends[1]
    if run.aligned(own_name):
        raise NotStoredError(
            f"{own_name} was aligned or renumbered, so that the path has its units in another order"
        )
    # A common head contains the outputs of each network.
    known = run.report["networks"][own_name]
    first = known["outputs"][0] if known["outputs"] else known["class_offset"]
    stored = path.checkpoint(float(path.ends.index(own_name))).weights
    own = load_network(run.file(own_name)).weights
    wrong = []
    for key, value in own.items():
        on_path = stored.get(key)
        if on_path is None or not _contains(on_path, value, first):
            wrong.append(f"{key} differs")
    return wrong


def _path(run: StoredRun) -> list[str]:
    path, report = run.path, run.report
    wrong = _differences("path/lengths", report["path"]["lengths"], path.lengths)
    wrong += _differences("crossover/t", report["crossover"]["t"], path.crossover)
    wrong += _differences("certificate/crossover", run.certificate["crossover"], path.crossover)
    relaxed = {part["leg"] for part in report["relaxed"] if part["share"] > 0}
    for leg, length in path.lengths.items():
        total = energy = 0.0
        for r in (record for record in path.steps if record.leg == leg):
            change = r.predicted if r.measured is None else r.measured
            total += max(change, 0.0) ** 0.5
            energy += max(r.predicted, 0.0)
            if not (_near(total, r.length, _EXACT) and _near(energy, r.energy, _EXACT)):
                wrong.append(f"step {r.step} of the leg from {leg} does not add up")
                break
        if not wrong and leg not in relaxed and not _near(total, length, _EXACT):
            wrong.append(f"the leg from {leg} is {length} long, its steps {total}")
    stated = run.certificate["drift"]["legs"]
    return wrong + _differences(
        "drift/legs", stated, leg_changes(path, report["crossover"]["step"])
    )


def _accuracy(run: StoredRun, name: str) -> list[str]:
    w = run.weights(name)
    given = run.certificate["accuracies"][name]
    row = next(row for row in run.report["results"] if row["name"] == name)
    wrong = []
    for split, tasks in given.items():
        for owner, numbers in tasks.items():
            task = run.task(owner)
            assert task is not None
            part = task.select if split == "select" else task.test
            recounted = count(run.head(owner), w, part)
            wrong += _differences(f"{split}/{owner}", numbers, recounted, _within(part))
            stated, again = row[split][owner], recounted.get("accuracy")
            if again is None:
                again = 1 / recounted["perplexity"]
            if not _near(stated, again, _within(part)):
                wrong.append(
                    f"the report's table has {stated} for {split}/{owner}, recomputed {again}"
                )
    return wrong


def _bracket(run: StoredRun) -> list[str]:
    tasks = {name: run.task(name) for name in run.certificate["data"]}
    splits = {name: (run.head(name), task.select) for name, task in tasks.items() if task}
    tolerance = max((_within(split) for _, split in splits.values()), default=_EXACT)
    return _differences("", run.certificate["bracket"], bracket(run.path, splits), tolerance)


def _drift(run: StoredRun, name: str) -> list[str]:
    given = run.certificate["drift"]["networks"][name]
    measured = function_change(run.expert(name), run.weights("crossover"), run.recipe["output"])
    return _differences("", {k: given[k] for k in measured}, measured, _CLOSE)


def _curve(run: StoredRun) -> list[str]:
    experts = [run.expert(name) for name in run.report["networks"]]
    measured = []
    few, ts = run.report.get("curve_examples"), [point["t"] for point in run.report["curve"]]
    count = len(run.path.ts)
    strides = (-(-count // POINTS), max(1, count // POINTS))  # the second of earlier versions
    if not any(ts == places_of(run.path, stride) for stride in strides):
        return ["the curve does not have the points of the path that a report measures"]
    for point in curve_of(run.path, experts, run.recipe["output"], ts, few):
        numbers = asdict(point)
        del numbers["predicted"]  # needs sketches, which the run does not store
        measured.append(numbers)
    stated = [{k: v for k, v in point.items() if k != "predicted"} for point in run.report["curve"]]
    return _differences("curve", stated, measured, _CLOSE)


def _sketched(networks: Any, name: str) -> bool:
    known = networks.get(name) if isinstance(networks, dict) else None
    return isinstance(known, dict) and bool(known.get("sketch"))


def _predicted(run: StoredRun, name: str) -> list[str]:
    expert = run.sketched(name)
    stated = run.certificate["drift"]["networks"][name]["predicted"]
    again = predicted_change(expert, run.weights("crossover"))
    wrong = _differences("predicted", stated, again, _CLOSE)
    for point in run.report["curve"]:
        again = predicted_change(expert, run.path.at(point["t"]))
        wrong += _differences(f"curve at {point['t']}", point["predicted"][name], again, _CLOSE)
    return wrong


def _within(split: Split) -> float:
    """Return the relative tolerance of a score: zero for counts, rounding for losses."""
    return _EXACT if split.measure == "accuracy" else _CLOSE


def _near(one: float, other: float, tolerance: float) -> bool:
    return math.isclose(one, other, rel_tol=tolerance, abs_tol=1e-12)


def _differences(where: str, stated: Any, again: Any, tolerance: float = _EXACT) -> list[str]:
    """Return the differences of two JSON values; only fractions have a tolerance."""
    if isinstance(stated, dict) and isinstance(again, dict) and stated.keys() == again.keys():
        pairs = [(str(key), stated[key], again[key]) for key in stated]
    elif isinstance(stated, list) and isinstance(again, list) and len(stated) == len(again):
        pairs = [(str(k), *pair) for k, pair in enumerate(zip(stated, again, strict=True))]
    else:
        same = stated == again
        if isinstance(stated, float) and isinstance(again, float):
            same = _near(stated, again, tolerance)
        return [] if same else [f"{where} is stated as {stated}, recomputed {again}"]
    return [
        text
        for key, first, second in pairs
        for text in _differences(f"{where}/{key}".strip("/"), first, second, tolerance)
    ]


def _contains(wide: Tensor, own: Tensor, first: int) -> bool:
    """Return whether a tensor equals another, or contains it as the block of a separate head.

    Args:
        wide: Tensor of the common head.
        own: Tensor of one network.
        first: First row of the network's block, in the last layer.
    """
    if wide.shape == own.shape:
        return torch.equal(wide, own)
    if wide.dim() != own.dim() or any(a < b for a, b in zip(wide.shape, own.shape, strict=True)):
        return False
    rows = {first, *range(0, len(wide) - len(own) + 1, len(own))}
    inner = wide.dim() > 1 and wide.shape[1] != own.shape[1]
    columns = range(0, wide.shape[1] - own.shape[1] + 1, own.shape[1]) if inner else (0,)
    for row in rows:
        for at in columns:
            block = wide[row : row + len(own)]
            if inner:
                block = block[:, at : at + own.shape[1]]
            if block.shape == own.shape and torch.equal(block, own):
                return True
    return False
