"""Stored path in weight space from one network (t = 0) to another (t = 1).

A path consists of one or two legs, each walked from one end. Points are stored as differences from
the end where their leg starts; t is the share of the cumulative length. The path is straight
between stored points.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geomerge.errors import OptionError, RunError, first_line
from geomerge.expert import Expert
from geomerge.io import paged
from geomerge.io.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from geomerge.io.files import parse_json, plain_file, write_bytes
from geomerge.io.precision import in_precision, with_dtype
from geomerge.metrics.sketch import weights_digest
from geomerge.networks.architectures import assumption, rebuild_network
from geomerge.networks.hugging_face import recorded_architecture
from geomerge.networks.network import Network
from geomerge.notebook import card, ruler, table
from geomerge.paths.leg import Leg, StepRecord, read_point, remove_files
from geomerge.processes import wait, writes

__all__ = ["WeightPath", "read_index", "read_steps"]

_INDEX = "index.json"
_STEPS = "steps.jsonl"
_OWN = re.compile(r"index\.json|steps\.jsonl|([a-z]|[a-z]+-\d{6})\.safetensors")


@dataclass(frozen=True)
class _Stop:
    t: float
    file: str | None  # None at the two ends
    base: str  # name of the end from which the stored difference is taken


class WeightPath:
    """A stored path; ``path.at(t)`` is the weight vector at t.

    Args:
        folder: Folder written by :meth:`write`.
        device: Device of the weight vectors.
        arch: Architecture of the networks: a name, ``module:factory``, or a callable that returns
            the module. None uses the recorded one.
        network: Network of the path; None rebuilds it from the architecture.
        ends: Weights of its ends by name, shape (n,) each, where they are in memory; None reads
            them.

    Raises:
        RunError: If the folder holds no complete path, or its index refers to files outside of the
            folder.
        CheckpointError: If a network at an end cannot be read.
        OptionError: If the recorded factory cannot be imported; pass ``arch`` in that case.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import geomerge as gm
        >>> def untrained(seed, task):
        ...     torch.manual_seed(seed)
        ...     module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        ...     return gm.Expert.from_module(module, task, inputs=seed == 0)
        >>> experts = [untrained(0, "digits@0-1"), untrained(1, "digits@2-3")]
        >>> merged = gm.merge(experts, steps=4, damping=1e-3)
        >>> path = gm.WeightPath(merged.path.folder)
        >>> path.ends, path.ts[0], path.ts[-1]
        (('a', 'b'), 0.0, 1.0)
        >>> path.module(0.5)(torch.zeros(1, 1, 8, 8)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        folder: str | Path,
        device: str | torch.device = "cpu",
        arch: str | Callable[[], nn.Module] | None = None,
        network: Network | None = None,
        ends: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.keeper: object = None  # keeps the temporary folder of the path alive
        try:
            index = read_index(self.folder / _INDEX)
            self._stops = [_Stop(**stop) for stop in index["stops"]]
            self.crossover: float = index["crossover"]
            self.lengths: dict[str, float] = index["lengths"]
            self.ends: tuple[str, str] = tuple(index["ends"])
            self._meta: dict[str, Any] = index["meta"]
            self.steps = [StepRecord(**record) for record in read_steps(self.folder / _STEPS)]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{self.folder} holds no whole path ({first_line(error)}); name the folder of a "
                "finished run"
            ) from error
        self.warnings: tuple[str, ...] = ()
        if network is not None and ends is not None:
            self.network, self._vectors = network, {end: ends[end] for end in self.ends}
        else:
            self._read(device, arch, network)

    def _read(
        self,
        device: str | torch.device,
        arch: str | Callable[[], nn.Module] | None,
        network: Network | None,
    ) -> None:
        """Read the networks at the ends, of which no copy beside the weight vectors is kept."""
        known = [self._end(end) for end in self.ends]
        a = known[0]
        if network is None:
            stated = arch or recorded_architecture(a.meta)
            assumed = None if stated else assumption(a.weights, a.source)
            self.warnings = () if assumed is None else (assumed,)
            network = Network(rebuild_network(a.weights, stated, a.source), device)
        self.network = network
        shapes = [{k: v.shape for k, v in c.weights.items()} for c in known]
        if any(other != shapes[0] for other in shapes):
            raise RunError(
                f"the ends of {self.folder} are not of one architecture; name the folder of a "
                "finished run"
            )
        vectors = [network.ravel(c.weights) for c in known]
        self._vectors = dict(zip(self.ends, vectors, strict=True))

    def _end(self, name: str) -> Checkpoint:
        return load_checkpoint(self.folder / f"{name}.safetensors")

    def __repr__(self) -> str:
        first, last = self.ends
        return (
            f"<WeightPath from {first} to {last}: {len(self._stops)} points, length "
            f"{sum(self.lengths.values()):.4g}, crossover at t = {self.crossover:.4g}>"
        )

    def _repr_html_(self) -> str:
        walked = [
            [leg, str(sum(step.leg == leg for step in self.steps)), f"{length:.4g}"]
            for leg, length in self.lengths.items()
        ]
        first, last = self.ends
        return card(
            f"Path of {len(self._stops)} networks with {self.network.n:,} weights",
            ruler((f"{first}, t = 0", f"{last}, t = 1"), self.ts, ("crossover", self.crossover)),
            table(("walked from", "steps", "length"), walked),
        )

    @property
    def ts(self) -> list[float]:
        """The t of each stored point, from 0 to 1."""
        return [stop.t for stop in self._stops]

    def at(self, t: float) -> Tensor:  # (n,)
        """Return the weight vector at t.

        Args:
            t: Share of the path's length.

        Returns:
            New vector of the weights; at t = 0 and t = 1 exactly those of the two networks.

        Raises:
            OptionError: If t is outside [0, 1].
        """
        if not 0 <= t <= 1:
            raise OptionError(f"expected t between 0 and 1, got {t}; 0 and 1 are the networks")
        after = next(i for i, stop in enumerate(self._stops) if stop.t >= t)
        stop = self._stops[after]
        if stop.t == t:
            return paged.copied(self._point(stop)) if stop.file is None else self._point(stop)
        before = self._stops[after - 1]
        share = (t - before.t) / (stop.t - before.t)
        return paged.lerp(self._point(before), self._point(stop), share)

    def checkpoint(self, t: float) -> Checkpoint:
        """Return the network at t with all buffers as a checkpoint; at the ends, the originals.

        Raises:
            OptionError: If t is outside [0, 1].
            CheckpointError: If the file of an end cannot be read.
        """
        end = {0.0: self.ends[0], 1.0: self.ends[1]}.get(float(t))
        if end is not None:
            return self._end(end)
        return Checkpoint(self.network.state_dict(self.at(t)), self._meta)

    def _meta_at(self, t: float) -> dict[str, Any]:
        """Return the metadata of :meth:`checkpoint`."""
        return dict(self.checkpoint(t).meta if t in (0, 1) else self._meta)

    def expert(self, t: float) -> Expert:
        """Return the network at t with its metadata as an expert without data.

        Raises:
            OptionError: If t is outside [0, 1].
        """
        w = self.at(t)
        return Expert(
            f"t={t:g}", self.network, w, source=f"{self.folder} at t = {t:g}",
            meta=self._meta_at(t), digest=weights_digest(self.network, w),
            warnings=self.warnings,
        )  # fmt: skip

    def module(self, t: float) -> nn.Module:
        """Return the network at t as a new module in evaluation mode, which can be trained.

        Raises:
            OptionError: If t is outside [0, 1].
        """
        return self.network.module_at(self.at(t))

    def copy_to(self, folder: Path) -> None:
        """Copy the path's files to another folder, which is created if necessary.

        Raises:
            OSError: If a file cannot be read or written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        stored = {f"{end}.safetensors" for end in self.ends}
        stored |= {stop.file for stop in self._stops if stop.file is not None}
        for name in [*sorted(stored), _STEPS, _INDEX]:
            shutil.copyfile(self.folder / name, folder / name)

    def _point(self, stop: _Stop) -> Tensor:
        base = self._vectors[stop.base]
        return base if stop.file is None else read_point(self.folder / stop.file, base)

    @staticmethod
    def clear(folder: Path) -> None:
        """Remove the files of a path from a folder, and no others."""
        wait()
        if not writes():
            return
        for file in folder.glob("*") if folder.is_dir() else ():
            if _OWN.fullmatch(file.name):
                file.unlink()

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
        """Join legs into a path and write its index; the legs' points are already in ``folder``.

        Args:
            folder: Folder of the path.
            first: Name and network of the start.
            last: Name and network of the end.
            legs: Leg from the start, leg from the end, or both, named like their ends.
            crossover: Leg and stored step of the picked point, at which the legs meet.
            points: Largest number of points of the path, including ends and crossover.
            meta: Metadata for checkpoints of the path's points: architecture, tasks.

        Returns:
            The crossover's t.
        """
        for leg in legs:
            kept = crossover[1] if leg is crossover[0] else 0
            remove_files(leg.thin(points // len(legs), kept))
        total = sum(leg.length for leg in legs) or 1.0
        stops = {0.0: _Stop(0.0, None, first[0]), 1.0: _Stop(1.0, None, last[0])}
        t = 0.0 if crossover[0].name == first[0] else 1.0
        for leg in legs:
            # The crossover is stored once, with the leg on which it was picked.
            for step, length in leg.marks[1:] if leg is crossover[0] else leg.marks[1:-1]:
                at = length / total if leg.name == first[0] else 1 - length / total
                stop = _Stop(at, leg.file(step).name, leg.name)
                if leg is crossover[0] and step == crossover[1]:
                    t = at
                    stops[at] = stops[at] if at in (0.0, 1.0) else stop
                elif 0 < at < 1:
                    stops.setdefault(at, stop)
        if not writes():
            return t
        for end, checkpoint in (first, last):
            # Reduced precision only if it is lossless: the ends must equal the networks bit for
            # bit.
            stored = in_precision(checkpoint.weights, checkpoint.meta.get("dtype"))
            exact = all(stored[k].to(v.dtype).equal(v) for k, v in checkpoint.weights.items())
            own = checkpoint.meta if exact else with_dtype(checkpoint.meta, None)
            save_checkpoint(folder / f"{end}.safetensors", Checkpoint(checkpoint.weights, own))
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


_STOP = {"t", "file", "base"}
_LARGEST = 64 * 2**20  # bytes; the index of a thousand points takes 0.1 MB


def read_index(file: Path) -> dict[str, Any]:
    """Return a path's index: points in order from t = 0 to t = 1, ends and lengths.

    Args:
        file: File of the index, in the folder of the points.

    Raises:
        OSError: If it cannot be read.
        ValueError: If the file is not an index, or names a file outside of its folder.
    """
    index = parse_json(_text(file))
    if not isinstance(index, dict):
        raise ValueError("the index is not a JSON object")
    missing = {"stops", "ends", "crossover", "lengths", "meta"} - set(index)
    if missing:
        raise ValueError(f"the index has no {sorted(missing)[0]}")
    ends, stops = index["ends"], index["stops"]
    if not isinstance(ends, list) or len(ends) != 2 or not all(isinstance(e, str) for e in ends):
        raise ValueError("the index does not name two ends")
    if not isinstance(index["meta"], dict) or not isinstance(index["lengths"], dict):
        raise ValueError("the index lacks lengths or metadata")
    if not isinstance(stops, list) or len(stops) < 2:
        raise ValueError("the index has no stops")
    for end in ends:
        plain_file(file.parent, f"{end}.safetensors")
    for stop in stops:
        if not isinstance(stop, dict) or set(stop) != _STOP or stop["base"] not in ends:
            raise ValueError("a stop of the index has no t, no file or no base")
        if stop["file"] is not None:
            plain_file(file.parent, stop["file"])
    numbers = [index["crossover"], *index["lengths"].values(), *(stop["t"] for stop in stops)]
    if not all(type(x) in (int, float) and math.isfinite(x) and x >= 0 for x in numbers):
        raise ValueError("a t or a length of the index is not a number of at least 0")
    ts = [stop["t"] for stop in stops]
    if ts[0] != 0 or ts[-1] != 1 or any(b <= a for a, b in pairwise(ts)) or index["crossover"] > 1:
        raise ValueError("the t of the index do not increase from 0 to 1")
    return index


def read_steps(file: Path) -> list[dict[str, Any]]:
    """Return the records of a path's steps, one per line of a file.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If a line is not a JSON object.
    """
    records = [parse_json(line) for line in _text(file).splitlines()]
    if not all(isinstance(record, dict) for record in records):
        raise ValueError("a step is not a JSON object")
    return records


def _text(file: Path) -> str:
    file = plain_file(file.parent, file.name)
    if not file.is_file():
        raise ValueError(f"no file {file.name}")
    if file.stat().st_size > _LARGEST:
        raise ValueError(f"{file.name} of {file.stat().st_size} bytes")
    return file.read_text(encoding="utf-8")
