"""Conversion of modules, checkpoints, state dicts and files to experts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from torch import Tensor, nn

from geomerge.errors import OptionError, type_of, warn_assumption
from geomerge.expert import Expert
from geomerge.io.checkpoint import Checkpoint
from geomerge.io.precision import stored_dtype, with_dtype
from geomerge.io.reading import FileOptions
from geomerge.networks.architectures import rename_like
from geomerge.networks.hugging_face import load_network, recorded_architecture

__all__ = ["Arch", "ExpertLike", "Opened", "as_expert", "as_experts", "opened", "rebuilt"]

ExpertLike: TypeAlias = Expert | nn.Module | Checkpoint | Mapping[str, Tensor] | str | Path
Opened: TypeAlias = Expert | nn.Module | Checkpoint  # files are read
Arch: TypeAlias = "str | Callable[[], nn.Module] | None"


def as_expert(thing: ExpertLike, name: str = "", among: Sequence[Opened] = ()) -> Expert:
    """Return an expert made from any object that describes a network.

    Args:
        thing: An expert, a module, a checkpoint, a state dict, or the path of a file.
        name: Name for an expert that has none.
        among: Networks given with it, whose architecture is taken for a file that does not record
            its own.

    Raises:
        OptionError: If it is something else.
        GeomergeError: If it cannot be read or rebuilt.
    """
    given = opened(thing)
    expert = given if isinstance(given, Expert) else rebuilt(given, among=among).with_data()
    return expert if expert.name else replace(expert, name=name)


def as_experts(things: Sequence[ExpertLike]) -> list[Expert]:
    """Return experts of networks that are given together.

    The architecture of the others is assumed for a file that records none and whose weights have
    the same names.

    Args:
        things: Networks, each as :func:`as_expert` takes it.

    Raises:
        GeomergeError: If one cannot be read or rebuilt.
    """
    given = [opened(thing) for thing in things]
    made: list[Expert] = []
    for one in given:
        if isinstance(one, Expert):
            made.append(one)
        else:
            like = next(iter(made), None)
            made.append(rebuilt(one, among=given, like=like).with_data())
    return made


def opened(thing: ExpertLike, files: FileOptions | None = None) -> Opened:
    """Read a file or wrap a state dict; experts and modules are returned as they are.

    Args:
        thing: Network.
        files: Options of reading a file.

    Raises:
        OptionError: If it does not describe a network.
        CheckpointError: If the file cannot be read.
    """
    if isinstance(thing, (str, Path)):
        return load_network(thing, files)
    if isinstance(thing, Mapping) and all(isinstance(v, Tensor) for v in thing.values()):
        return Checkpoint(dict(thing), with_dtype({}, stored_dtype(thing)), source="state dict")
    if isinstance(thing, (Expert, nn.Module, Checkpoint)):
        return thing
    raise OptionError(
        f"expected an Expert, a module, a checkpoint or the path of a file, got "
        f"{type_of(thing)}; make one with Expert.from_module or Expert.load"
    )


def rebuilt(
    thing: Opened,
    arch: Arch = None,
    *,
    name: str = "",
    device: str = "cpu",
    among: Sequence[Opened] = (),
    like: Expert | None = None,
) -> Expert:
    """Return an expert without new data.

    Args:
        thing: Network.
        arch: Architecture of a checkpoint; None takes the recorded one.
        name: Name in options and results.
        device: Device of a network that is rebuilt.
        among: Networks given together, whose architecture is taken for a checkpoint that does not
            record its own.
        like: Network whose names of tensors replace those of a bare state dict that differ by a
            prefix.

    Raises:
        GeomergeError: If it cannot be rebuilt.
    """
    if isinstance(thing, Expert):
        return replace(thing, name=name) if name else thing
    if isinstance(thing, nn.Module):
        return Expert.from_module(thing, name=name)
    if arch is not None or recorded_architecture(thing.meta) is not None:
        return Expert.from_checkpoint(thing, arch, name=name, device=device)
    lent = _lent(thing, among)
    if lent is None and like is not None:
        alike = rename_like(thing.weights, like.network.module.state_dict())
        thing = replace(thing, weights=alike)
    if lent is None:
        return Expert.from_checkpoint(thing, name=name, device=device)
    arch, source, names = lent
    thing = replace(thing, weights=rename_like(thing.weights, names))
    sentence = (
        f"{Path(thing.source).name} does not record its architecture: that of {source} was "
        "assumed; give `arch` if it has another"
    )
    warn_assumption(sentence)
    made = Expert.from_checkpoint(thing, arch, name=name, device=device)
    return replace(made, warnings=(*made.warnings, sentence))


def _lent(
    thing: Checkpoint, among: Sequence[Opened]
) -> tuple[Arch, str, Mapping[str, Tensor]] | None:
    """Return the architecture that the others share, its source, and their tensors by name.

    None unless the networks with the same names have exactly one architecture.
    """
    found: dict[object, tuple[Arch, str, Mapping[str, Tensor]]] = {}
    for other in among:
        if isinstance(other, Expert) and other.warnings:  # assumed itself
            continue
        arch, key, source, tensors = _told(other)
        if arch is None or set(rename_like(thing.weights, tensors)) != set(tensors):
            continue
        found.setdefault(key, (arch, Path(source).name, tensors))
    return next(iter(found.values())) if len(found) == 1 else None


def _told(other: Opened) -> tuple[Arch, object, str, Mapping[str, Tensor]]:
    """Return the architecture that a network records, with a key for comparisons."""
    if isinstance(other, nn.Module):
        kind = type(other)
        return partial(copy.deepcopy, other), kind, kind.__qualname__, other.state_dict()
    known = recorded_architecture(other.meta)
    key = known if known is None or isinstance(known, str) else type(known)
    if isinstance(other, Checkpoint):
        return known, key, other.source, other.weights
    module = other.network.module
    return known or other.module, key or type(module), other.source, module.state_dict()
