"""Stored merges: networks, data and weights of a finished run, read from its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geomerge.alignment import ROTATIONS
from geomerge.certificate.certificate import report_digest
from geomerge.data import (
    ExampleOptions,
    Inputs,
    Normalisation,
    Task,
    is_text_file,
    load_encoded_task,
    load_task,
)
from geomerge.errors import Problems, RunError
from geomerge.expert import Expert, text_encoder
from geomerge.expert_options import DataOptions
from geomerge.io.checkpoint import Checkpoint, load_checkpoint
from geomerge.io.files import file_sha256
from geomerge.loading import load_experts, walked_inputs
from geomerge.merging.class_names import renumbered_task
from geomerge.merging.memory import fit_memory
from geomerge.merging.options import MergeOptions
from geomerge.merging.prepare import PreparedMerge, prepare
from geomerge.merging.presets.registry import PRESETS
from geomerge.metrics.sketch import SKETCH_FILE
from geomerge.networks.hugging_face import (
    load_config,
    load_network,
    model_folder,
    network_digest,
)
from geomerge.networks.network import Network
from geomerge.options import replace_options, restore_options
from geomerge.paths.path import WeightPath

__all__ = ["BASE", "SKETCH_OF", "NotStoredError", "StoredRun"]

BASE = "base"  # name of the common ancestor among the input files
SKETCH_OF = "sketch of "  # prefix of a network's name for its sketch among the input files


class NotStoredError(RunError):
    """Error for a claim whose subject is not stored in any known file."""


class StoredRun:
    """A finished merge, stored in a folder.

    Args:
        folder: Folder of the run.
        report: Content of its ``report.json``, with a certificate.
        networks: Paths of input files, by name of the network. Other files are searched in the
            current folder and in the two above the run's.
        arch: Architecture of the networks, if the run does not record it.
        data_root: Folder of the named data sets.
        download: Whether torchvision may download data sets.
        device: Device for computations.
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
        self._load = cache(self._load_task)  # networks can share a task

    @cached_property
    def path(self) -> WeightPath:
        """Stored path."""
        return WeightPath(self.folder / "path", self._device, self._arch)

    @cached_property
    def merged(self) -> Checkpoint:
        """Merged network."""
        return load_checkpoint(self.folder / "merged.safetensors")

    @cached_property
    def report_changed(self) -> list[str]:
        """A sentence if the report's digest differs from that in its certificate."""
        same = report_digest(self.report) == self.certificate.get("report_sha256")
        return [] if same else ["it was edited after the run"]

    @cached_property
    def files_changed(self) -> list[str]:
        """A sentence for each missing or changed file of the run other than the report."""
        files = self.certificate.get("files")
        if not isinstance(files, dict):
            return ["the certificate does not name any"]
        changed = []
        for name, digest in files.items():
            inside = self.folder / name
            if Path(name).is_absolute() or ".." in Path(name).parts or not inside.is_file():
                changed.append(f"{name} is not there")
            elif file_sha256(inside) != digest:
                changed.append(f"{name} has changed")
        return changed

    @property
    def recipe(self) -> dict[str, Any]:
        """Options that determine the result."""
        options: dict[str, Any] = self.certificate["recipe"]["merge"]
        return options

    def aligned(self, name: str) -> bool:
        """Return whether a network was rotated, or its units or outputs permuted, for the merge."""
        order = self.report["networks"][name].get("class_order")
        found = [one for one in self.report["alignment"].values() if one is not None]
        rotated = any(one.get("method") == ROTATIONS for one in found)  # the first network too
        return rotated or self.report["alignment"].get(name) is not None or order is not None

    @cached_property
    def prepared(self) -> PreparedMerge:
        """Networks, read from their files and prepared as in the merge.

        Raises:
            NotStoredError: If a file is not found.
            GeomergeError: If data are not available.
        """
        options = restore_options(MergeOptions, self.recipe)
        found = [one["method"] for one in self.report["alignment"].values() if one is not None]
        options = replace_options(options, align=found[0] if found else "none")
        names = self.certificate["sketches"]
        data = replace(
            restore_options(DataOptions, self.recipe),
            sketch=tuple(f"{name}={self.file(SKETCH_OF + name)}" for name in names),
            data_root=self._data_root,
            download=self._download,
            device=str(self._device),
        )
        if self._arch is not None:
            data = replace(data, arch=self._arch)
        files = [self.file(name) for name in self.certificate["data"]]
        experts = load_experts(files, data, output=options.measure.output)
        based = BASE in self.certificate["inputs"]
        base = Expert.load(self.file(BASE), arch=data.arch, inputs=False) if based else None
        prepared = prepare(experts, options, Problems(strict=True), base)
        assert prepared is not None, "strict problems are raised"
        prepared = fit_memory(prepared)  # sketches are made in the form that it leaves room for
        return PRESETS[self.report["preset"]](prepared).prepared  # with surrogates, if used

    def expert(self, name: str) -> Expert:
        """Return a network with its data, without its sketch, from the run's files alone.

        Raises:
            GeomergeError: If it is not stored, or its data are not available.
        """
        return Expert(
            name, self.head(name), self.weights(name), self.task(name), self.manifold(name),
            source=self.report["networks"][name]["file"],
        )  # fmt: skip

    def sketched(self, name: str) -> Expert:
        """Return a network with its sketch, stored or measured as in the merge.

        Raises:
            GeomergeError: If a file is not found, or data are not available.
        """
        expert = self.prepared.space[name]
        return replace(expert, sketch=self.prepared.sketch(expert))

    def file(self, name: str) -> Path:
        """Return the path of an input file: as given, or of a file with the certified digest.

        Raises:
            NotStoredError: If no file has its name.
        """
        if name in self._given:
            return self._given[name]
        if name.startswith(SKETCH_OF):
            stated = Path(self.certificate["sketches"][name.removeprefix(SKETCH_OF)])
            inside = stated.name == SKETCH_FILE and ".." not in stated.parts
            own = str(Path(*stated.parts[-2:])) if inside else stated.name
        elif name == BASE:
            own = self.report["base"]
        else:
            own = Path(self.report["networks"][name]["file"]).name
        places = (Path(), self.folder.absolute().parent, self.folder.absolute().parents[1])
        files = [p for p in (place / own for place in places) if p.is_file() or model_folder(p)]
        if not files:
            raise NotStoredError(f"{own} was not found; give the file of {name!r} with `networks`")
        digest = self.certificate["inputs"][name]
        same = [file for file in files if network_digest(file) == digest]
        return (same or files)[0]

    def weights(self, name: str) -> Tensor:  # (n,)
        """Return the weights of the crossover (those of merged.safetensors), or of a network.

        Raises:
            NotStoredError: If the run does not store the weights of a network.
        """
        path = self.path
        if name == "crossover":
            return path.network.ravel(self.merged.weights)
        if name in path.ends:
            return path.at(float(path.ends.index(name)))
        if self.report["head"]["protocol"] != "shared" or self.aligned(name):
            raise NotStoredError(
                f"the run does not store {name} as it was merged, so that nothing can be measured "
                "on it again"
            )
        return path.network.ravel(load_network(self.file(name)).weights)

    def head(self, name: str) -> Network:
        """Return the network with the outputs of one network's task."""
        outputs = self.report["networks"][name]["outputs"]
        return self.path.network.head_view(slice(*outputs) if outputs else slice(None))

    def task(self, name: str) -> Task | None:
        """Return the task of a network; None if it had none.

        Raises:
            GeomergeError: If the data are not available.
        """
        given = self.certificate["data"][name]["task"]
        if given is None:
            return None
        known, task = self.report["networks"][name], self._task(given)
        order = known.get("class_order")
        if order is not None and not is_text_file(given["name"]):  # texts are renumbered in files
            task = renumbered_task(task, torch.tensor(order))
        return task.shifted(known["class_offset"])

    def manifold(self, name: str) -> Inputs | None:
        """Return the inputs that walks used for a network; None if there were none.

        Raises:
            GeomergeError: If the data are not available.
        """
        given = self.certificate["data"][name]["manifold"]
        if given is None:
            return None
        return walked_inputs(self._task(given).train.inputs, self.recipe.get("max_inputs"))

    def _task(self, given: Mapping[str, Any]) -> Task:
        numbers = given["normalisation"]
        if is_text_file(given["name"]):
            return self._text_task(given["name"])
        return self._load(given["name"], tuple(numbers["mean"]), tuple(numbers["std"]))

    def _text_task(self, name: str) -> Task:
        """Return a task of texts, tokenised with the network's model folder in the run."""
        owner = next(k for k, d in self.certificate["data"].items() if name in _names(d))
        folder = self.folder / self.report.get("folders", {}).get(owner, "")
        encoder = text_encoder(folder, load_config(folder))
        columns = restore_options(ExampleOptions, self.recipe)
        return load_encoded_task(Path(name), encoder, columns, str(torch.device(self._device)))

    def _load_task(self, name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> Task:
        return load_task(
            name,
            data_root=self._data_root,
            download=self._download,
            normalisation=Normalisation(mean, std),
            device=str(torch.device(self._device)),
        )


def _names(data: Mapping[str, Any]) -> set[str]:
    """Return the names of a network's task and inputs in a certificate."""
    return {part["name"] for part in data.values() if part}
