"""Wrappers of modules and their removal, and the mark of modules made by a merge."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

__all__ = ["mark_merged", "plain_module", "was_merged", "without_graph"]

_MARK = "_geomerge_merged"


def plain_module(module: nn.Module) -> nn.Module:
    """Return a module without ``torch.compile``, ``DataParallel`` and ``AveragedModel`` around it.

    Wrappers around its submodules are taken away as well. Parameters and buffers are the module's
    own, and the module itself is not changed.

    Args:
        module: Module, wrapped or not.
    """
    inner = _inside(module)
    while inner is not None:
        module, inner = inner, _inside(inner)
    children = {name: plain_module(m) for name, m in module._modules.items() if m is not None}
    if all(child is module._modules[name] for name, child in children.items()):
        return module
    plain = copy.copy(module)
    plain._modules = {**module._modules, **children}
    return plain


def _inside(module: nn.Module) -> nn.Module | None:
    # Compiled modules have a type of their own, which importing would load the whole compiler.
    compiled: Any = vars(module).get("_modules", {}).get("_orig_mod")
    if compiled is not None and type(module).__name__ == "OptimizedModule":
        return compiled  # type: ignore[no-any-return]
    kinds = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    if isinstance(module, kinds) or type(module).__name__ == "AveragedModel":
        return module.module  # type: ignore[return-value]
    return None


def without_graph(module: nn.Module) -> dict[int, Tensor]:
    """Return the replacements in a deep copy of a module of tensors that belong to a graph.

    Modules keep such tensors in attributes, for example the features of their last batch.

    Args:
        module: Module to copy.

    Returns:
        Memo of ``copy.deepcopy``: detached tensors by the ``id`` of those in the module.
    """
    values = (value for part in module.modules() for value in vars(part).values())
    return {id(v): v.detach() for v in values if isinstance(v, Tensor) and not v.is_leaf}


def mark_merged(module: nn.Module) -> None:
    """Mark a module whose weights a merge has made; copies of it are marked too."""
    vars(module)[_MARK] = True


def was_merged(module: nn.Module) -> bool:
    """Return whether a module is marked."""
    return bool(vars(module).get(_MARK, False))
