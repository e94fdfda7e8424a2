"""State dicts in what training loops save: found under any key, without their wrappers' names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from geomerge.errors import CheckpointError
from geomerge.io.pickles import Foreign, StoredArray, StoredTensor

__all__ = [
    "StoredStateDict",
    "choose_state_dict",
    "nameless_in",
    "plain_names",
    "state_dicts_in",
    "unread_in",
]

Stored = StoredTensor | StoredArray
T = TypeVar("T")

_DEEPEST = 3  # keys that lead to a state dict
_USUAL = (
    "state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params",
    "model_state", "student",
)  # fmt: skip
_COPIES = re.compile(r"EMA|SWA|(^|_)(ema|swa|shadow|averaged?|avg|teacher|target)(_|\d|$)")
_BESIDE = re.compile(r"optim|sched|rng|random|callback|loops|scaler", re.IGNORECASE)
_MOSTLY = 0.5  # share of all numbers, where the whole object is the state dict
# What torch and its wrappers put into names: compiled, sharded and checkpointed modules.
_WRAPPERS = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PARALLEL = "module."
_AVERAGED = "n_averaged"  # counter of torch.optim.swa_utils.AveragedModel
_UNREAD = {  # what makes tensors that are not computed with, by a part of its name
    "_rebuild_qtensor": "quantised tensors", "_rebuild_sparse": "sparse tensors",
    "_rebuild_nested": "nested tensors", "_rebuild_meta": "tensors without data",
    "DTensor": "tensors that are spread over several processes",
    "ShardedTensor": "tensors that are spread over several processes",
    "_rebuild_wrapper": "tensors of a class of their own",
    "_rebuild_from_type": "tensors of a class of their own",
    "packed_params": "quantised tensors", "ScriptModule": "a TorchScript module",
}  # fmt: skip
_LARGEST = 10_000  # entries that are looked through
_MODULE = "_modules"  # attribute of every nn.Module


@dataclass(frozen=True)
class StoredStateDict:
    """A dictionary of tensors in a file.

    Attributes:
        key: Keys that lead to it, with dots between them; empty for the whole object.
        tensors: Its tensors by name.
        others: Other entries of the dictionary.
    """

    key: str
    tensors: Mapping[str, Stored]
    others: Mapping[Any, Any]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of its tensors by name."""
        return {name: tuple(t.shape) for name, t in self.tensors.items()}

    @property
    def count(self) -> int:
        """Number of all numbers."""
        return sum(_count(t) for t in self.tensors.values())


def state_dicts_in(content: Any) -> list[StoredStateDict]:
    """Return the dictionaries of floating tensors in a saved object, in their order.

    States of optimizers, schedules and random generators are none.

    Args:
        content: Inert values, as :func:`~geomerge.io.pickles.read_pickle` gives them.
    """
    found = list(_search(content, (), set()))
    matrices = [c for c in found if any(len(t.shape) > 1 for t in c.tensors.values())]
    return matrices or found  # curves of a loss are no weights beside those


def unread_in(value: Any, depth: int = _DEEPEST + 2) -> str | None:
    """Return the part of a saved object that holds weights and is not read; None if none.

    Args:
        value: Inert values.
        depth: Number of objects within objects that are looked into.
    """
    if isinstance(value, Foreign):
        known = next((said for part, said in _UNREAD.items() if part in value.name), None)
        if known is None and isinstance(value.state, dict) and _MODULE in value.state:
            return f"a pickled module ({value.name})"
        return known
    inside: Any = value.values() if type(value) is dict else value
    if depth == 0 or type(value) not in (dict, list, tuple) or len(value) > _LARGEST:
        return None
    return next((said for part in inside if (said := unread_in(part, depth - 1))), None)


def nameless_in(content: Any) -> str | None:
    """Return the key of a list of tensors, as ``torch_ema`` stores averages; None without any.

    Args:
        content: Inert values.
    """
    for key, value in content.items() if type(content) is dict else ():
        if type(value) in (list, tuple) and any(isinstance(part, Stored) for part in value):
            return str(key)
    return None


def choose_state_dict(
    found: list[StoredStateDict], key: str | None, source: str
) -> StoredStateDict:
    """Return the state dict of a network among the dictionaries of tensors in a file.

    Several keys with commas between them are parts of one network, each below its own key.

    Usual names come first, copies of the network (``ema``, ``teacher``) last, and of others the
    largest is taken.

    Args:
        found: Candidates, at least one.
        key: Key that the user names; None takes the usual one.
        source: Name of the file, for messages.

    Raises:
        CheckpointError: If there is none of that key.
    """
    if key is None:
        whole = sum(candidate.count for candidate in found)
        ranks = [(_rank(candidate, whole), -candidate.count) for candidate in found]
        return found[ranks.index(min(ranks))]
    if "," in key:
        return _joined([choose_state_dict(found, part.strip(), source) for part in key.split(",")])
    named = [c for c in found if key == c.key] or [
        c for c in found if key == c.key.rpartition(".")[2]
    ]
    if len(named) != 1:
        told = " and ".join(repr(c.key) for c in found)
        raise CheckpointError(
            f"expected `weights_key` to be a key of {source} that holds weights, which are {told}, "
            f"got {key!r}; name one"
        )
    return named[0]


def plain_names(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return tensors without what wrappers put into their names.

    ``torch.compile``, FSDP and activation checkpointing name a module within names,
    ``DataParallel`` and ``AveragedModel`` in front of all of them.

    Args:
        tensors: A state dict.
    """
    found = dict(tensors)
    if _AVERAGED in found and all(k.startswith(_PARALLEL) for k in found if k != _AVERAGED):
        del found[_AVERAGED]
    while True:
        shorter = {_WRAPPERS.sub("", name): value for name, value in found.items()}
        if all(name.startswith(_PARALLEL) for name in shorter):
            shorter = {name.removeprefix(_PARALLEL): v for name, v in shorter.items()}
        if len(shorter) < len(found) or shorter.keys() == found.keys():
            return found
        found = shorter


def _joined(parts: list[StoredStateDict]) -> StoredStateDict:
    """Return the parts of a network as its state dict, each by the last key that leads to it."""
    tensors: dict[str, Stored] = {}
    for part in parts:
        prefix = part.key.rpartition(".")[2]
        tensors |= {f"{prefix}.{name}": value for name, value in plain_names(part.tensors).items()}
    return StoredStateDict(",".join(part.key for part in parts), tensors, {})


def _search(value: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[StoredStateDict]:
    items = _entries(value, outermost=not path)
    if id(value) in seen or "param_groups" in items:
        return
    seen.add(id(value))
    tensors = {
        name: entry
        for name, entry in items.items()
        if type(name) is str
        and isinstance(entry, Stored)
        and _is_plain(entry)
        and ("." in name or not _BESIDE.search(name))
    }
    if not isinstance(value, (tuple, list)) and any(map(_is_weight, tensors.values())):
        others = {
            name: v for name, v in items.items() if name not in tensors and type(v) is not dict
        }
        yield StoredStateDict(".".join(path), tensors, others)
    if len(path) < _DEEPEST:
        for name, entry in items.items():
            if type(name) is str and not _BESIDE.search(name):
                yield from _search(entry, (*path, name), seen)


def _entries(value: Any, outermost: bool) -> Mapping[Any, Any]:
    if isinstance(value, Foreign):
        return value.items
    if outermost and isinstance(value, (tuple, list)) and len(value) < 16:
        return {str(k): entry for k, entry in enumerate(value)}
    return value if type(value) is dict else {}


def _is_plain(stored: Stored) -> bool:
    return isinstance(stored, StoredTensor) or stored.content is not None


def _is_weight(stored: Stored) -> bool:
    whole = re.match(r"u?int|bool|[<>|=]?[iub]\d?", stored.kind)
    return whole is None and len(stored.shape) > 0


def _count(stored: Stored) -> int:
    count = 1
    for size in stored.shape:
        count *= size
    return count


def _rank(candidate: StoredStateDict, whole: int) -> int:
    parts = candidate.key.split(".")
    if not candidate.key:
        return 0 if candidate.count > _MOSTLY * whole else 3
    if any(_COPIES.search(part) for part in parts):
        return 2
    return 0 if parts[-1] in _USUAL else 1
