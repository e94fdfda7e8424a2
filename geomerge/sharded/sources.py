"""Model folders of Hugging Face as sources of weights, of which each process reads its rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from geomerge.errors import CheckpointError, OptionError
from geomerge.merging.class_names import check_numbers, names_of_config
from geomerge.merging.heads import linear_layers, own_layers
from geomerge.merging.same_make import may_differ
from geomerge.networks.adapters import ADAPTER
from geomerge.networks.hugging_face import (
    CONFIG,
    ConfiguredModel,
    load_config,
    model_folder,
    predicted_by,
    stored_tensors,
)
from geomerge.processes import Team
from geomerge.sharded.network import parameters_without_memory, with_own_layers

__all__ = ["Sources"]

_OWN = ".of."  # between the name of an own layer and the number of a network


class Sources:
    """Fine-tunes in model folders, called a, b, c, ... in order.

    Args:
        folders: Folders with ``config.json`` and safetensors files.
        head: ``"shared"``, ``"separate"``, or None to choose by the classes.
        base: Folder of the common ancestor; layers before the last one that it does not have are
            each network's own too, where heads are separate.

    Attributes:
        folders: Folder of each network, by name.
        configs: Content of each ``config.json``, by name.
        head: ``"shared"`` or ``"separate"``.
        own: Names of the layers that are each network's own.
        dtype: Half-precision type of all networks' files; None where they have none in common.

    Raises:
        OptionError: If there are fewer than two networks, or a class has two numbers in a shared
            head.
        CheckpointError: If a folder cannot be read, or holds another kind of network.
    """

    def __init__(
        self, folders: Sequence[str | Path], head: str | None = None, base: Path | None = None
    ) -> None:
        if not 2 <= len(folders) <= len(ascii_lowercase):
            raise OptionError(
                f"expected 2 to {len(ascii_lowercase)} networks, got {len(folders)}; name a folder "
                "for each"
            )
        self.folders = {
            name: _folder(Path(path)) for name, path in zip(ascii_lowercase, folders, strict=False)
        }
        self.configs = {name: load_config(folder) for name, folder in self.folders.items()}
        self._check_kinds()
        self._stored = {name: stored_tensors(folder) for name, folder in self.folders.items()}
        kinds = {stored.dtype for stored in self._stored.values()}
        self.dtype = kinds.pop() if len(kinds) == 1 else None
        labels = [config.get("id2label") for config in self.configs.values()]
        self.head = head or ("shared" if all(own == labels[0] for own in labels) else "separate")
        self.own: list[str] = []
        plain = self._plain()
        if self.head == "separate":
            source = str(self.folders["a"])
            layers = linear_layers(plain, source)
            known = {f"{layer}.weight" for layer in layers[:-1]}
            if base is not None:
                known = set(stored_tensors(_folder(base)).files)
            self.own = own_layers(plain, layers, known)
        else:
            check_numbers(
                (str(self.folders[k]), names_of_config(own)) for k, own in self.configs.items()
            )
        self._check_shapes(plain)

    def _check_kinds(self) -> None:
        """Refuse configurations of other tasks, and of networks with another function."""
        first: dict[str, Any] = {}
        for name, config in self.configs.items():
            folder = self.folders[name]
            if predicted_by(config) != "class":
                raise CheckpointError(
                    f"{folder} is a language model, expected a network for classification; merge "
                    "it without shards"
                )
            own = ConfiguredModel(config, str(folder)).entries
            first = first or own
            for entry in sorted(own.keys() | first.keys()):
                if own.get(entry) != first.get(entry) and not may_differ(entry):
                    raise CheckpointError(
                        f"{entry} is {json.dumps(first.get(entry))} in {self.folders['a']} and "
                        f"{json.dumps(own.get(entry))} in {folder}, expected networks of one "
                        "architecture; name fine-tunes of one base"
                    )

    def _check_shapes(self, plain: nn.Module) -> None:
        """Refuse weights that are missing, or of another shape than the configurations say."""
        wanted = {k: tuple(p.shape) for k, p in plain.named_parameters()}
        for name, stored in self._stored.items():
            folder = self.folders[name]
            claimed = {k: tuple(p.shape) for k, p in self._plain(name).named_parameters()}
            for tensor, shape in wanted.items():
                found = stored.shapes.get(tensor)
                if found is None:
                    raise CheckpointError(
                        f"{folder} has no {tensor!r}; save the model again with save_pretrained"
                    )
                if found != shape and tensor.rpartition(".")[0] not in self.own:
                    raise CheckpointError(
                        f"{tensor} of {folder} has the shape {found}, expected {shape}; name "
                        "networks of one architecture, or use `head` separate for heads of "
                        "different tasks"
                    )
                if found != claimed.get(tensor):
                    raise CheckpointError(
                        f"{tensor} of {folder} has the shape {found}, and by its {CONFIG} "
                        f"{claimed.get(tensor)}; save the model again with save_pretrained"
                    )

    def _plain(self, name: str = "a") -> nn.Module:
        """Return a network's module, its parameters without memory."""
        with parameters_without_memory():
            return ConfiguredModel(self.configs[name], str(self.folders[name]))()

    def module(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Return the module of all networks, its parameters without memory.

        Args:
            dtype: Type of the weights.
        """
        sizes = {
            layer: [self._stored[name].shapes[f"{layer}.weight"] for name in self.folders]
            for layer in self.own
        }
        pairs = {layer: [(rows, width) for rows, width in found] for layer, found in sizes.items()}
        return with_own_layers(self._plain().to(dtype), pairs)

    def number(self, name: str) -> int:
        """Return the number of a network in own layers."""
        return ascii_lowercase.index(name)

    def stored_name(self, parameter: str, name: str) -> str | None:
        """Return the name of a module's parameter in a network's files; None if another's own."""
        layer, _, rest = parameter.partition(_OWN)
        if layer not in self.own:
            return parameter
        number, _, last = rest.partition(".")
        return f"{layer}.{last}" if int(number) == self.number(name) else None

    def rows(self, name: str, parameter: str, start: int, stop: int) -> Tensor:
        """Return rows of a parameter as a network has them; own layers of others as theirs.

        Args:
            name: Name of the network.
            parameter: Name of the module's parameter.
            start: First row.
            stop: Row after the last.
        """
        stored, owner = self.stored_name(parameter, name), name
        if stored is None:
            owner = next(k for k in self.folders if self.stored_name(parameter, k) is not None)
            stored = self.stored_name(parameter, owner)
        assert stored is not None
        with safe_open(self._stored[owner].files[stored], "pt") as stream:
            found: Tensor = stream.get_slice(stored)[start:stop]
        return found

    def mean_rows(self, parameter: str, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Return the mean of all networks' rows of a parameter, in a type; own ones as they are."""
        if parameter.partition(_OWN)[0] in self.own:
            return self.rows("a", parameter, start, stop).to(dtype)
        parts = [self.rows(name, parameter, start, stop).to(dtype) for name in self.folders]
        return torch.stack(parts).mean(dim=0)

    def check_finite(self, total: float, mates: Team) -> None:
        """Refuse weights that are not finite, in every process.

        Args:
            total: Sum of what this process has read.
            mates: Processes that read the others.
        """
        found = torch.tensor([total], dtype=torch.float64)
        mates.add([found])
        if not torch.isfinite(found).all():
            raise CheckpointError(
                "weights of the networks are not finite, expected numbers; save the models again"
            )

    def config(self, name: str, dtype: str) -> dict[str, Any]:
        """Return the configuration of a network's folder that holds merged weights.

        Args:
            name: Name of the network whose head it has.
            dtype: Name of the weights' type.
        """
        kept: Mapping[str, Any] = self.configs[name]
        return {k: v for k, v in kept.items() if k != "torch_dtype"} | {"dtype": dtype}


def _folder(path: Path) -> Path:
    found = model_folder(path)
    if found is None or not (found / CONFIG).is_file():
        kind = f"an {ADAPTER}" if found is not None else f"no {CONFIG}"
        raise CheckpointError(
            f"{path} has {kind}, expected a model folder of Hugging Face with {CONFIG} and "
            "safetensors files; save the whole model with save_pretrained"
        )
    return found
