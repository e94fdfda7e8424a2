"""Stored merge: the networks, data and weights of a finished run, read from its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geomerge.certificate.certificate import report_digest
from geomerge.data import Inputs, Normalisation, Task, load_task
from geomerge.errors import RunError
from geomerge.io.checkpoint import Checkpoint, load_checkpoint
from geomerge.io.files import sha256
from geomerge.merging.options import MergeOptions
from geomerge.merging.prepare import prepare_sides
from geomerge.merging.sides import Side, Sides
from geomerge.metrics import KroneckerMetric, make_sketch
from geomerge.networks.network import Network
from geomerge.paths.path import WeightPath

__all__ = ["SKETCH_OF", "NotStoredError", "StoredRun"]

SKETCH_OF = "sketch of "  # prefix of a network's name, among the names of input files


class NotStoredError(RunError):
    """The subject of a claim is in no known file."""


class StoredRun:
    """A finished merge, stored in a folder.

    Args:
        folder: Folder of the run.
        report: Content of its ``report.json``, with a certificate.
        networks: Places of the input files, by the name of a network. Others are looked for in the
            current folder and in the two above the run's.
        arch: Architecture of the networks, where the run does not record it.
        data_root: Folder of the named data sets.
        download: Whether torchvision may fetch them.
        device: Device that computes.
    """

    def __init__(
        self,
        folder: Path,
        report: dict[str, Any],
        networks: Mapping[str, Path],
        *,
        arch: str | Callable[[], nn.Module] | None = None,
        data_root: str | None = None,
        download: bool = False,
        device: str = "cpu",
    ) -> None:
        self.folder = folder
        self.report = report
        self.certificate: dict[str, Any] = report["certificate"]
        self._given = dict(networks)
        self._arch = arch
        self._data_root = data_root
        self._download = download
        self._device = device
        self._load = cache(self._load_task)  # several networks may have one task

    @cached_property
    def path(self) -> WeightPath:
        """The path."""
        return WeightPath(self.folder / "path", self._device, self._arch)

    @cached_property
    def merged(self) -> Checkpoint:
        """The merged network."""
        return load_checkpoint(self.folder / "merged.safetensors")

    @cached_property
    def report_changed(self) -> list[str]:
        """A sentence if the report has another digest than its certificate states."""
        same = report_digest(self.report) == self.certificate.get("report_sha256")
        return [] if same else ["it was edited after the run"]

    @cached_property
    def files_changed(self) -> list[str]:
        """A sentence for each other file of the run that is missing or has changed."""
        files = self.certificate.get("files")
        if not isinstance(files, dict):
            return ["the certificate does not name any"]
        changed = []
        for name, digest in files.items():
            inside = self.folder / name
            if Path(name).is_absolute() or ".." in Path(name).parts or not inside.is_file():
                changed.append(f"{name} is not there")
            elif sha256(inside.read_bytes()) != digest:
                changed.append(f"{name} has changed")
        return changed

    @property
    def recipe(self) -> dict[str, Any]:
        """Options that decided the result."""
        options: dict[str, Any] = self.certificate["recipe"]["merge"]
        return options

    def aligned(self, name: str) -> bool:
        """Return whether a network's units were permuted before the merge."""
        return self.recipe.get("align", "none") != "none" and name != self.path.ends[0]

    @cached_property
    def sides(self) -> Sides:
        """The networks, prepared from their files as the merge prepared them.

        Raises:
            NotStoredError: If a file is not found.
            GeomergeError: If data cannot be had.
        """
        options: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in self.recipe.items()
        }
        options["data_root"], options["download"] = self._data_root, self._download
        names = self.certificate["sketches"]
        sketches = tuple(f"{name}={self.file(SKETCH_OF + name)}" for name in names)
        networks = [load_checkpoint(self.file(name)) for name in self.certificate["data"]]
        return prepare_sides(
            networks, MergeOptions(**options, sketch=sketches, device=self._device)
        )

    def side(self, name: str) -> Side:
        """Return a network with its data, without its sketch, from the run alone.

        Raises:
            GeomergeError: If it is not stored, or its data cannot be had.
        """
        known = self.report["networks"][name]
        side = Side(name, self.merged, self.head(name), self.weights(name), known["class_offset"])
        side.task, side.manifold = self.task(name), self.manifold(name)
        return side

    def sketch(self, name: str) -> KroneckerMetric:
        """Return the metric of a network's sketch, or of the one that the merge made of it.

        Raises:
            GeomergeError: If a file is not found, or data cannot be had.
        """
        side = self.sides[name]
        if side.sketch is None:
            assert side.manifold is not None
            assert side.manifold_name is not None
            side.sketch = make_sketch(
                side.network, side.w, side.manifold, side.manifold_name,
                output=self.recipe["output"], seed=self.recipe["seed"],
            )  # fmt: skip
        return side.sketch.metric

    def file(self, name: str) -> Path:
        """Return the place of an input file: as given, or one with the digest that is stated.

        Raises:
            NotStoredError: If there is no file of its name.
        """
        if name in self._given:
            return self._given[name]
        if name.startswith(SKETCH_OF):
            own = Path(self.certificate["sketches"][name.removeprefix(SKETCH_OF)]).name
        else:
            own = Path(self.report["networks"][name]["file"]).name
        places = (Path(), self.folder.absolute().parent, self.folder.absolute().parents[1])
        files = [place / own for place in places if (place / own).is_file()]
        if not files:
            raise NotStoredError(f"{own} was not found; say where {name!r} is with `networks`")
        digest = self.certificate["inputs"][name]
        same = [file for file in files if sha256(file.read_bytes()) == digest]
        return (same or files)[0]

    def weights(self, name: str) -> Tensor:  # (n,)
        """Return the weights of the crossover (those of merged.safetensors), or of a network.

        Raises:
            NotStoredError: If a network between the ends of the path is in no file.
        """
        path = self.path
        if name == "crossover":
            return path.network.ravel(self.merged.weights)
        if name in path.ends:
            return path.at(float(path.ends.index(name)))
        if self.report["head"]["protocol"] != "shared" or self.aligned(name):
            raise NotStoredError(f"the run does not store {name} as it was merged")
        return path.network.ravel(load_checkpoint(self.file(name)).weights)

    def head(self, name: str) -> Network:
        """Return the network as a network's task sees it."""
        outputs = self.report["networks"][name]["outputs"]
        return self.path.network.head_view(slice(*outputs) if outputs else slice(None))

    def task(self, name: str) -> Task | None:
        """Return the task of a network, None if it had none.

        Raises:
            GeomergeError: If the data cannot be had.
        """
        given = self.certificate["data"][name]["task"]
        if given is None:
            return None
        return self._task(given).shifted(self.report["networks"][name]["class_offset"])

    def manifold(self, name: str) -> Inputs | None:
        """Return the inputs that walks used for a network, None if there were none.

        Raises:
            GeomergeError: If the data cannot be had.
        """
        given = self.certificate["data"][name]["manifold"]
        return None if given is None else self._task(given).train.inputs

    def _task(self, given: Mapping[str, Any]) -> Task:
        numbers = given["normalisation"]
        return self._load(given["name"], tuple(numbers["mean"]), tuple(numbers["std"]))

    def _load_task(self, name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> Task:
        return load_task(
            name,
            data_root=self._data_root,
            download=self._download,
            normalisation=Normalisation(mean, std),
            device=str(torch.device(self._device)),
        )
