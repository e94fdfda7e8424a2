"""Matching of a state dict's names to a module's, with prefixes, ties and counters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from os.path import commonprefix
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from geomerge.errors import CheckpointError

__all__ = [
    "Fit",
    "check_fit",
    "fit_names",
    "listed",
    "plain_counters",
    "rename_like",
    "what_weights_are",
]

V = TypeVar("V")
_COUNTERS = re.compile(r"(^|\.)(num_batches_tracked|total_ops|total_params|n_averaged)$")
_SHOWN = 6
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.")
_ADAPTERS = re.compile(r"(^|[._])(lora|hada|lokr|ia3)_|(^|\.)adapter_(down|up)|prompt_encoder")
_QUANTISED = re.compile(r"(^|\.)(SCB|absmax|quant_map|qweight|qzeros|weight_format|scale_inv)$")


class Fit(NamedTuple):
    """Tensors of a state dict, by the names of a module.

    Attributes:
        tensors: Tensors of the module, by its names.
        missing: Names of required tensors of the module that the state dict lacks.
        extra: Tensors that the module lacks, except counters.
    """

    tensors: dict[str, Tensor]
    missing: list[str]
    extra: dict[str, Tensor]


def fit_names(module: nn.Module, weights: Mapping[str, Tensor]) -> Fit:
    """Match a state dict to a module's names.

    The names may differ by one prefix. Counters (of BatchNorm, of operations) may be missing or
    extra. Tensors that are tied to present ones may be missing, and so may integer buffers, which
    the module initialises.

    Args:
        module: Module.
        weights: State dict.
    """
    own = module.state_dict()
    named = _renamed(weights, own)
    tensors = {name: named[name] for name in own if name in named}
    missing = [name for name in own if name not in named and _needed(name, own, tensors)]
    buffers = dict(module.named_buffers())
    extra = {
        name: value
        for name, value in named.items()
        if name not in own and not _COUNTERS.search(name) and not _same(buffers.get(name), value)
    }
    if extra and missing:  # the module may map names of earlier versions
        try:
            left = module.load_state_dict({**tensors, **extra}, strict=False)
        except RuntimeError:  # different shapes
            return Fit(tensors, missing, extra)
        missing = [name for name in missing if name in left.missing_keys]
        known = {name: extra[name] for name in extra if name not in left.unexpected_keys}
        return Fit({**tensors, **known}, missing, {k: extra[k] for k in extra if k not in known})
    return Fit(tensors, missing, extra)


def plain_counters(weights: Mapping[str, V]) -> dict[str, V]:
    """Return tensors without counters, which do not affect outputs."""
    return {name: value for name, value in weights.items() if not _COUNTERS.search(name)}


def rename_like(weights: Mapping[str, V], like: Mapping[str, Tensor]) -> dict[str, V]:
    """Rename tensors like others whose names differ by a prefix; keep the names if none fits.

    Args:
        weights: Tensors to rename.
        like: Tensors with the wanted names.
    """
    named = _renamed(weights, like)
    return named if set(named) >= set(plain_counters(like)) else dict(weights)


def what_weights_are(weights: Mapping[str, Tensor], source: str) -> str | None:
    """Return why a state dict is not a complete network, with the remedy; None if it may be one.

    Args:
        weights: State dict.
        source: Name of the file.
    """
    shard = _SHARD.search(source)
    if shard is not None and int(shard[2]) > 1:
        return (
            f"{source} is one shard of {int(shard[2])} and holds a part of the weights; name the "
            "folder that has them all, or save the whole state dict in one file"
        )
    if any(_QUANTISED.search(name) for name in weights):
        return (
            f"{source} holds quantised weights, expected floats; give the weights that they were "
            "made from"
        )
    adapters = [name for name in weights if _ADAPTERS.search(name)]
    if not adapters:
        return None
    if len(adapters) == len(weights):
        return (
            f"{source} is an adapter without its base network ({adapters[0]!r}, ...); merge it "
            "into the base (merge_and_unload in peft) and save the result"
        )
    return (
        f"{source} holds an adapter beside its base network ({adapters[0]!r}, ...); merge it into "
        "the base (merge_and_unload in peft) and save the result"
    )


def listed(names: Iterable[str]) -> str:
    """Return a list of names for a sentence, abbreviated if it is long."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


def check_fit(fit: Fit, source: str, shown: str) -> None:
    """Raise one error for all missing and extra weights of a module.

    Args:
        fit: Matched weights.
        source: Name of the weights' source.
        shown: Name of the architecture.

    Raises:
        CheckpointError: If tensors are missing or extra.
    """
    if fit.missing:
        odd = what_weights_are({**fit.tensors, **fit.extra}, source)
        has = f", and has {listed(fit.extra)} in their place" if fit.extra else ""
        raise CheckpointError(
            odd
            or f"{source} does not fit the architecture {shown}: it lacks {listed(fit.missing)}"
            f"{has}; check `arch`"
        )
    if fit.extra:
        odd = what_weights_are(fit.extra, source)
        pattern = _pattern([*fit.extra], fit.tensors)
        raise CheckpointError(
            odd
            or f"{source} has {_counted(len(fit.extra))} that the architecture {shown} has not: "
            f"{listed(fit.extra)}; check `arch`, or leave them out with `leave_out` {pattern}"
        )


def _counted(count: int) -> str:
    return "a tensor" if count == 1 else f"{count} tensors"


def _renamed(weights: Mapping[str, V], own: Mapping[str, Tensor]) -> dict[str, V]:
    """Replace the prefix of names so that as many as possible match others."""
    if not set(plain_counters(own)) - set(weights):
        return dict(weights)
    best, most = dict(weights), len(set(weights) & set(own))
    for old in _prefixes(weights):
        for new in _prefixes(own):
            named = {_moved(name, old, new, own): value for name, value in weights.items()}
            count = len(set(named) & set(own))
            if count > most and len(named) == len(weights):
                best, most = named, count
    return best


def _moved(name: str, old: str, new: str, own: Mapping[str, Tensor]) -> str:
    return name if name in own or not name.startswith(old) else new + name.removeprefix(old)


def _prefixes(tensors: Mapping[str, object]) -> list[str]:
    """Return candidate prefixes of names: empty, one part, or two if all share the first."""
    firsts = dict.fromkeys(name.partition(".")[0] + "." for name in tensors if "." in name)
    found = ["", *firsts]
    if len(firsts) == 1:
        first = next(iter(firsts))
        rest = (name.removeprefix(first) for name in tensors)
        found += dict.fromkeys(first + n.partition(".")[0] + "." for n in rest if "." in n)
    return found[:64]


def _needed(name: str, own: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict must contain a tensor of a module."""
    value = own[name]
    if _COUNTERS.search(name) or not (value.is_floating_point() or value.is_complex()):
        return False
    return not any(
        other in there and tensor.data_ptr() == value.data_ptr() and tensor.shape == value.shape
        for other, tensor in own.items()
        if value.data_ptr()
    )


def _same(buffer: Tensor | None, value: Tensor) -> bool:
    """Return whether a non-persistent buffer has the values of a file."""
    return (
        buffer is not None
        and buffer.shape == value.shape
        and torch.equal(buffer.to(value.dtype), value)
    )


def _pattern(names: list[str], kept: Iterable[str]) -> str:
    """Return a pattern that matches the names but no kept one; the names if there is none."""
    if len(names) == 1:
        return names[0]
    pattern = f"{commonprefix(names)}*"  # noqa: RUF071
    if pattern == "*" or any(fnmatchcase(name, pattern) for name in kept):
        return " and ".join(names)
    return pattern
