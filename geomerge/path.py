"""A path from one network (t = 0) to another (t = 1): few points on disk, any point in between.

A path is one or two legs, each walked from one end. Points are stored as differences from the end
that their leg was walked from, and lie on t by their share of the cumulative length. Between
stored points the path is straight.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from geomerge.architectures import rebuild_network
from geomerge.checkpoint import Checkpoint, load_checkpoint, read_safetensors, save_checkpoint
from geomerge.errors import OptionError, RunError
from geomerge.files import write_bytes
from geomerge.network import Network
from geomerge.walk import WalkPoint

__all__ = ["Leg", "StepRecord", "WeightPath", "record_leg"]

_INDEX = "index.json"
_STEPS = "steps.jsonl"


@dataclass(frozen=True)
class StepRecord:
    """The numbers of one step.

    Attributes:
        leg: Name of the leg.
        step: Its number on the leg, from 1, in the order walked.
        norm: |theta|.
        distance: What was still wanted before the step (weights: |target - w|; function: KL).
        damping: mu, or None on a straight piece.
        predicted: theta' g theta.
        measured: Mean |phi(w + theta) - phi(w)|^2 on the kept task's inputs, None without them.
        length: Sum of sqrt(measured) up to here on this leg, of sqrt(predicted) where the kept
            task has no inputs.
        energy: Sum of predicted up to here, arXiv 2012.09605 eq. (5) with unit time steps.
        multipliers: Shadow price of each budget that bound the step, by the budget's name.
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
    """The points of one walk, spread by length, in a folder.

    Args:
        folder: Where the points are written, one file each.
        name: Name of the leg in records.
        base: The end it was walked from; points are stored as differences from it, (n,).
    """

    def __init__(self, folder: Path, name: str, base: Tensor) -> None:
        self.folder = folder
        self.name = name
        self.base = base
        self.marks: list[tuple[int, float]] = [(0, 0.0)]  # step and length of each stored point
        self.steps: list[StepRecord] = []

    @property
    def length(self) -> float:
        """Length of the leg up to its last stored point."""
        return self.marks[-1][1]

    def length_at(self, step: int) -> float:
        """Return the length of the leg up to a step, as it was walked."""
        return self.steps[step - 1].length if step else 0.0

    def file(self, step: int) -> Path:
        """Return where the point after a step is stored."""
        return self.folder / f"{self.name}-{step:06d}.safetensors"

    def weights(self, step: int) -> Tensor:  # (n,)
        """Return a stored point; step 0 is the base."""
        if step == 0:
            return self.base
        return _read_point(self.file(step), self.base)

    def store(
        self,
        step: int,
        w: Tensor,  # (n,)
        length: float,
    ) -> None:
        """Store a point reached after a step."""
        self._write(step, w)
        self.marks.append((step, length))

    def _write(
        self,
        step: int,
        w: Tensor,  # (n,)
    ) -> None:
        delta = (w - self.base).detach().cpu()
        safetensors.torch.save_file({"delta": delta}, str(self.file(step)))

    def thin(self, points: int, keep: int = 0) -> None:
        """Remove the points that lie closest together until at most ``points`` are left.

        Args:
            points: How many to leave; both ends stay.
            keep: A step whose point stays too.
        """
        while len(self.marks) > max(points, 3):
            marks = self.marks
            inner = [i for i in range(1, len(marks) - 1) if marks[i][0] != keep]
            drop = min(inner, key=lambda i: marks[i + 1][1] - marks[i - 1][1])
            self.file(self.marks.pop(drop)[0]).unlink()

    def cut(self, step: int) -> None:
        """Forget everything after a stored step."""
        for late, _ in self.marks:
            if late > step:
                self.file(late).unlink()
        self.marks = [mark for mark in self.marks if mark[0] <= step]
        self.steps = [record for record in self.steps if record.step <= step]

    def replace(
        self,
        step: int,
        w: Tensor,  # (n,)
    ) -> None:
        """Put other weights in the place of a stored point after the first."""
        if step and not torch.equal(w, self.weights(step)):
            self._write(step, w)

    def moved(self, folder: Path) -> Leg:
        """Move the points into another folder and return the leg."""
        for step, _ in self.marks[1:]:
            self.file(step).rename(folder / self.file(step).name)
        self.folder = folder
        return self

    def extend(self, other: Leg) -> None:
        """Go on with a leg that starts where this one ends; its points are copied."""
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
        """Keep only some of the stored points between two of them, with new lengths.

        Args:
            steps: The steps of the points that stay, both ends counted.
            lengths: Of the straight pieces between them.
        """
        at = dict(self.marks)
        ends = [at[steps[0]] + length for length in accumulate(lengths, initial=0.0)]
        change = ends[-1] - at[steps[-1]]
        for step in at:
            if steps[0] < step < steps[-1] and step not in steps:
                self.file(step).unlink()
        self.marks = [
            *((step, length) for step, length in self.marks if step < steps[0]),
            *zip(steps, ends, strict=True),
            *((step, length + change) for step, length in self.marks if step > steps[-1]),
        ]

    def remove(self) -> None:
        """Delete the stored points."""
        self.cut(0)


def record_leg(
    folder: Path,
    name: str,
    start: Tensor,  # (n,)
    walk: Iterable[WalkPoint],
    points: int,
    measure: Callable[[Tensor, Tensor], float] | None = None,
) -> Leg:
    """Follow a walk, keep its numbers, and store at most ``points`` of its points.

    Args:
        folder: Where points are stored.
        name: Name of the leg.
        start: Where the walk starts.
        walk: The walk.
        points: Most points stored, both ends counted.
        measure: Called with the weights before and after a step, returns the measured functional
            change; None where the kept task has no inputs.

    Returns:
        The leg; its last point is always stored.
    """
    folder.mkdir(parents=True, exist_ok=True)
    leg = Leg(folder, name, start)
    before, length, energy, last = start, 0.0, 0.0, None
    spacing = 0.0  # grows so that storing and thinning stay few
    for step, point in enumerate(walk, 1):
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
        if length - leg.marks[-1][1] >= spacing or step == 1:
            leg.store(step, point.weights, length)
            if len(leg.marks) >= 2 * points:
                leg.thin(points)
                spacing = length / (2 * points)
        before, last = point.weights, (step, point.weights, length)
    if last is not None and leg.marks[-1][0] != last[0]:
        leg.store(*last)
    leg.thin(points)
    return leg


@dataclass(frozen=True)
class _Stop:
    t: float
    file: str | None  # None at the two ends
    base: str  # name of the end that it is stored as a difference from


class WeightPath:
    """A stored path; ``path.at(t)`` is the network there.

    Args:
        folder: A folder written by :meth:`write`.
        device: Where its weight vectors are.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu") -> None:
        self.folder = Path(folder)
        try:
            index = json.loads((self.folder / _INDEX).read_text())
            self._stops = [_Stop(**stop) for stop in index["stops"]]
            self.crossover: float = index["crossover"]
            self.lengths: dict[str, float] = index["lengths"]
            self.ends: tuple[str, str] = tuple(index["ends"])
            self._meta: dict[str, Any] = index["meta"]
            records = (self.folder / _STEPS).read_text().splitlines()
            self.steps = [StepRecord(**json.loads(line)) for line in records]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{self.folder} holds no whole path ({error}); name the folder of a finished run"
            ) from error
        self._ends = {end: load_checkpoint(self.folder / f"{end}.safetensors") for end in self.ends}
        a = self._ends[self.ends[0]]
        module = rebuild_network(a.weights, a.meta.get("architecture"), a.source)
        self.network = Network(module, device)
        self._vectors = {k: self.network.ravel(c.weights) for k, c in self._ends.items()}

    @property
    def ts(self) -> list[float]:
        """The t of each stored point, from 0 to 1."""
        return [stop.t for stop in self._stops]

    def at(self, t: float) -> Tensor:  # (n,)
        """Return the weight vector at t.

        Args:
            t: Share of the path's length.

        Returns:
            The weights; those of the two networks themselves at the ends.

        Raises:
            OptionError: If t is outside [0, 1].
        """
        if not 0 <= t <= 1:
            raise OptionError(f"expected t between 0 and 1, got {t}; 0 and 1 are the networks")
        after = next(i for i, stop in enumerate(self._stops) if stop.t >= t)
        stop = self._stops[after]
        if stop.t == t:
            return self._point(stop)
        before = self._stops[after - 1]
        share = (t - before.t) / (stop.t - before.t)
        return torch.lerp(self._point(before), self._point(stop), share)

    def checkpoint(self, t: float) -> Checkpoint:
        """Return the network at t with all buffers, ready to save; the networks at the ends."""
        end = {0.0: self.ends[0], 1.0: self.ends[1]}.get(float(t))
        if end is not None:
            return self._ends[end]
        return Checkpoint(self.network.state_dict(self.at(t)), self._meta)

    def _point(self, stop: _Stop) -> Tensor:
        base = self._vectors[stop.base]
        return base if stop.file is None else _read_point(self.folder / stop.file, base)

    @staticmethod
    def write(
        folder: Path,
        first: tuple[str, Checkpoint],
        last: tuple[str, Checkpoint],
        legs: list[Leg],
        crossover: tuple[Leg, int],
        points: int,
        meta: dict[str, Any],
    ) -> float:
        """Join legs to a path and write its index; the legs' points lie in ``folder`` already.

        Args:
            folder: The path's folder.
            first: Name and network where the path starts.
            last: The same where it ends.
            legs: The leg walked from the first, the leg walked from the last, or both, each under
                that name.
            crossover: The leg and the stored step of the picked point, where two legs meet.
            points: Most points of the whole path, ends and crossover counted.
            meta: What a checkpoint taken off the path shall know: architecture, tasks.

        Returns:
            The crossover's t.
        """
        for leg in legs:
            leg.thin(points // len(legs), keep=crossover[1] if leg is crossover[0] else 0)
        total = sum(leg.length for leg in legs) or 1.0
        stops = {0.0: _Stop(0.0, None, first[0]), 1.0: _Stop(1.0, None, last[0])}
        t = 0.0 if crossover[0].name == first[0] else 1.0
        for leg in legs:
            # The other leg ends at the crossover, which is stored as its own leg left it.
            for step, length in leg.marks[1:] if leg is crossover[0] else leg.marks[1:-1]:
                at = length / total if leg.name == first[0] else 1 - length / total
                stop = _Stop(at, leg.file(step).name, leg.name)
                if leg is crossover[0] and step == crossover[1]:
                    t = at
                    stops[at] = stops[at] if at in (0.0, 1.0) else stop
                elif 0 < at < 1:
                    stops.setdefault(at, stop)
        for end, checkpoint in (first, last):
            save_checkpoint(
                folder / f"{end}.safetensors", Checkpoint(checkpoint.weights, checkpoint.meta)
            )
        index = {
            "stops": [asdict(stops[k]) for k in sorted(stops)],
            "ends": [first[0], last[0]],
            "crossover": t,
            "lengths": {leg.name: leg.length for leg in legs},
            "meta": meta,
        }
        write_bytes(folder / _INDEX, (json.dumps(index, indent=1) + "\n").encode())
        lines = [json.dumps(asdict(record)) for leg in legs for record in leg.steps]
        write_bytes(folder / _STEPS, "".join(line + "\n" for line in lines).encode())
        return t


def _read_point(
    file: Path,
    base: Tensor,  # (n,)
) -> Tensor:  # (n,)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise RunError(f"cannot read {file} ({error.strerror}); walk again") from error
    tensors, _ = read_safetensors(content, file)
    if tensors.get("delta") is None or tensors["delta"].shape != base.shape:
        raise RunError(f"{file} is not a point of this path; walk again")
    return base + tensors["delta"].to(base.device)
