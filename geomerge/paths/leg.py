"""Legs of a path: the stored points of one walk, and records of all its steps."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geomerge.errors import RunError
from geomerge.io import paged
from geomerge.io.checkpoint import map_safetensors
from geomerge.io.containers import check_plain
from geomerge.io.files import write_tensors
from geomerge.processes import wait, writes
from geomerge.walks.state import StateFile
from geomerge.walks.walk import WalkPoint

__all__ = ["Leg", "StepRecord", "points_stored", "read_point", "record_leg", "remove_files"]

_LEAST = 8  # stored points of a leg
_LEG_BYTES = 2e9  # points of a leg where their number is the usual one
_HELD_BYTES = 64e6  # points of a running walk that are not yet files


@dataclass(frozen=True)
class StepRecord:
    """Record of one step.

    Attributes:
        leg: Name of the leg.
        step: Number of the step on the leg, from 1, in walking order.
        norm: Length |theta|.
        distance: Distance before the step (weights: |target - w|; function: KL).
        damping: Damping mu, or None on a straight piece.
        predicted: Predicted functional change theta' g theta.
        measured: Mean |phi(w + theta) - phi(w)|^2 on inputs of the preserved task, or None.
        length: Sum of sqrt(measured) on this leg so far; of sqrt(predicted) where there are no
            inputs.
        energy: Sum of ``predicted`` so far, arXiv 2012.09605 eq. (5) with unit time steps.
        multipliers: Shadow prices of the active constraints, by name.
    """

    leg: str
    step: int
    norm: float
    distance: float
    damping: float | None
    predicted: float
    measured: float | None
    length: float
    energy: float
    multipliers: dict[str, float] = field(default_factory=dict)


class Leg:
    """Stored points of one walk, evenly spaced in length.

    Args:
        folder: Folder of the points, one file each.
        name: Name of the leg in records.
        base: Start of the walk, shape (n,); points are stored as differences from it.
    """

    def __init__(self, folder: Path, name: str, base: Tensor) -> None:
        self.folder = folder
        self.name = name
        self.base = base
        self.marks: list[tuple[int, float]] = [(0, 0.0)]  # step and length of each stored point
        self.steps: list[StepRecord] = []
        self._held: dict[int, Tensor] = {}  # differences of stored points that are not yet files

    @property
    def length(self) -> float:
        """Length of the leg up to its last stored point."""
        return self.marks[-1][1]

    def length_at(self, step: int) -> float:
        """Return the length of the walk up to a step."""
        return self.steps[step - 1].length if step else 0.0

    def file(self, step: int) -> Path:
        """Return the file of the point after a step."""
        return self.folder / f"{self.name}-{step:06d}.safetensors"

    def weights(self, step: int) -> Tensor:  # (n,)
        """Return a stored point; step 0 is the base."""
        if step == 0:
            return self.base
        wait()
        return read_point(self.file(step), self.base)

    def store(
        self,
        step: int,
        w: Tensor,  # (n,)
        length: float,
    ) -> None:
        """Store a point reached after a step."""
        self.hold(step, w, length)
        self.write_held()

    def hold(
        self,
        step: int,
        w: Tensor,  # (n,)
        length: float,
    ) -> None:
        """Store a point in memory; it becomes a file unless it is removed before."""
        self._hold(step, w)
        self.marks.append((step, length))
        if self.base.nbytes * len(self._held) > _HELD_BYTES:
            self.write_held()

    def _hold(
        self,
        step: int,
        w: Tensor,  # (n,)
    ) -> None:
        if writes():
            self._held[step] = paged.difference(w, self.base).detach().cpu()

    def write_held(self) -> None:
        """Write the points in memory to their files."""
        for step in list(self._held):
            write_tensors(self.file(step), {"delta": self._held[step]})
            del self._held[step]

    def thin(self, points: int, keep: int = 0) -> list[Path]:
        """Remove points from where they are densest until at most ``points`` remain.

        Args:
            points: Largest number of points; both ends are kept.
            keep: Step whose point is kept as well.

        Returns:
            Files of the removed points, which the caller deletes.
        """
        files = []
        while len(self.marks) > max(points, 3):
            marks = self.marks
            inner = [i for i in range(1, len(marks) - 1) if marks[i][0] != keep]
            drop = min(inner, key=lambda i: marks[i + 1][1] - marks[i - 1][1])
            file = self.file(step := self.marks.pop(drop)[0])
            # A walk that was stopped after its last state may have left the file of a held point.
            if self._held.pop(step, None) is None or file.exists():
                files.append(file)
        return files

    def cut(self, step: int) -> None:
        """Remove all points and records after a stored step."""
        remove_files([self.file(late) for late, _ in self.marks if late > step])
        self.marks = [mark for mark in self.marks if mark[0] <= step]
        self.steps = [record for record in self.steps if record.step <= step]

    def replace(
        self,
        step: int,
        w: Tensor,  # (n,)
    ) -> None:
        """Replace the weights of a stored point other than the base."""
        parts = paged.in_parts(w, self.weights(step)) if step else ()
        if not all(torch.equal(*pair) for pair in parts):
            wait()
            self._hold(step, w)
            self.write_held()

    def copied(self, folder: Path) -> Leg:
        """Return an independent copy of the leg in another folder on the same disk."""
        other = Leg(folder, self.name, self.base)
        other.marks, other.steps = list(self.marks), list(self.steps)
        wait()
        for step, _ in self.marks[1:] if writes() else ():
            other.file(step).unlink(missing_ok=True)
            try:  # files are replaced, never modified, so that both folders can share one
                os.link(self.file(step), other.file(step))
            except OSError:  # the file system has no hard links
                shutil.copyfile(self.file(step), other.file(step))
        return other

    def extend(self, other: Leg) -> None:
        """Append a leg that starts at the end of this one; its points are copied."""
        done, length = len(self.steps), self.length
        energy = self.steps[-1].energy if self.steps else 0.0
        for step, at in other.marks[1:]:
            self.store(done + step, other.weights(step), length + at)
        self.steps += [
            replace(
                record,
                leg=self.name,
                step=done + record.step,
                length=length + record.length,
                energy=energy + record.energy,
            )
            for record in other.steps
        ]

    def straighten(self, steps: Sequence[int], lengths: Sequence[float]) -> None:
        """Remove stored points between two others and set new lengths.

        Args:
            steps: Steps of the remaining points, both ends included.
            lengths: Lengths of the straight pieces between them.
        """
        at = dict(self.marks)
        ends = [at[steps[0]] + length for length in accumulate(lengths, initial=0.0)]
        change = ends[-1] - at[steps[-1]]
        between = [k for k in at if steps[0] < k < steps[-1] and k not in steps]
        remove_files([self.file(step) for step in between])
        self.marks = [
            *((step, length) for step, length in self.marks if step < steps[0]),
            *zip(steps, ends, strict=True),
            *((step, length + change) for step, length in self.marks if step > steps[-1]),
        ]

    def remove(self) -> None:
        """Delete the stored points."""
        self.cut(0)


def points_stored(most: int, usual: int, n: int) -> int:
    """Return the largest number of stored points of a leg.

    Args:
        most: Number of the options. The usual number is lowered, to 8 at least, where so many
            points would be larger than 2 GB; any other number stays.
        usual: Usual number.
        n: Number of weights, each stored in 4 bytes.
    """
    return most if most != usual else min(usual, max(_LEAST, int(_LEG_BYTES // (4 * n))))


def remove_files(files: Sequence[Path]) -> None:
    """Delete files of points once no process reads them."""
    wait()
    for file in files if writes() else ():
        file.unlink()


def read_point(
    file: Path,
    base: Tensor,  # (n,)
) -> Tensor:  # (n,)
    """Return a stored point.

    Raises:
        RunError: If the file cannot be read or is not a point of that path.
    """
    try:
        tensors, _ = map_safetensors(file)
    except OSError as error:
        raise RunError(f"cannot read {file} ({error.strerror}); walk again") from error
    check_plain(tensors, file)
    delta = tensors.get("delta")
    if delta is None or delta.shape != base.shape or not delta.is_floating_point():
        raise RunError(f"{file} is not a point of this path; walk again")
    paged.give_back()  # of the file all pages stay as long as it is mapped
    w = paged.empty(len(base), base.dtype, base.device)
    for out, start, part in paged.in_parts(w, base, delta):
        torch.add(start, part.to(base.device), out=out)
    return w


def record_leg(
    folder: Path,
    name: str,
    start: Tensor,  # (n,)
    walk: Iterable[WalkPoint],
    points: int,
    measure: Callable[[Tensor, Tensor], float] | None = None,
    kept: StateFile | None = None,
) -> Leg:
    """Record all steps of a walk and store at most ``points`` of its points.

    Args:
        folder: Folder of the points.
        name: Name of the leg.
        start: Start of the walk.
        walk: Points of the walk; of a resumed walk, the remaining ones.
        points: Largest number of stored points, both ends included.
        measure: Function of the weights before and after a step that returns the measured
            functional change; None if the preserved task has no inputs.
        kept: State of the walk and the leg on disk, written at intervals, also by the walk itself.
            The walk of a finished leg is not repeated.

    Returns:
        The leg; its last point is always stored.
    """
    if writes():
        folder.mkdir(parents=True, exist_ok=True)
    leg = Leg(folder, name, start)
    kept = StateFile() if kept is None else kept
    known = kept.state.part("leg")
    before, length, energy = known.tensors.get("w", start), 0.0, 0.0
    records: list[dict[str, Any]] = known.values.setdefault("steps", [])
    if records:
        leg.marks = [(step, at) for step, at in known.values["marks"]]
        leg.steps = [StepRecord(**record) for record in records]
        length, energy = leg.steps[-1].length, leg.steps[-1].energy
    if known.values.get("over"):
        return leg
    spacing = known.values.get("spacing", 0.0)  # grows, so that points are rarely thinned
    known.values["marks"] = leg.marks  # shared with the leg, so that the state is always up to date
    kept.before_write = leg.write_held

    for step, point in enumerate(walk, len(leg.steps) + 1):
        measured = None if measure is None else measure(before, point.weights)
        length += max(point.predicted if measured is None else measured, 0.0) ** 0.5
        energy += max(point.predicted, 0.0)
        damping = point.damping if point.damping < float("inf") else None
        leg.steps.append(
            StepRecord(
                name, step, point.norm, point.distance, damping, point.predicted, measured,
                length, energy, dict(point.multipliers),
            )
        )  # fmt: skip
        records.append(asdict(leg.steps[-1]))
        known.tensors["w"] = before = point.weights
        if length - leg.marks[-1][1] >= spacing or step == 1:
            leg.hold(step, before, length)
            if len(leg.marks) >= 2 * points:
                dropped = leg.thin(points)
                known.values["spacing"] = spacing = length / (2 * points)
                if dropped:  # the state on disk still refers to these files
                    kept.write()
                remove_files(dropped)
        if kept.due:
            kept.write()
    if leg.steps and leg.marks[-1][0] != len(leg.steps):
        leg.hold(len(leg.steps), before, length)
    known.values["over"] = True
    dropped = leg.thin(points)
    leg.write_held()
    kept.write()
    remove_files(dropped)
    return leg
