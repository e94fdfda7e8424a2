"""Unwrapping of modules, and the mark of modules made by a merge."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

__all__ = ["mark_merged", "plain_module", "was_merged", "without_graph"]

_MARK = "_geomerge_merged"


def plain_module(module: nn.Module) -> nn.Module:
    """Return a module without ``torch.compile``, ``DataParallel`` and ``AveragedModel`` around it.

    Wrappers of submodules are removed as well. Parameters and buffers are shared with the module,
    which is not changed.

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
    # Not by type, since importing that of compiled modules would load the compiler.
    compiled: Any = vars(module).get("_modules", {}).get("_orig_mod")
    if compiled is not None and type(module).__name__ == "OptimizedModule":
        return compiled  # type: ignore[no-any-return]
    kinds = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    if isinstance(module, kinds) or type(module).__name__ == "AveragedModel":
        return module.module  # type: ignore[return-value]
    return None


def without_graph(module: nn.Module) -> dict[int, Tensor]:
    """Return replacements for a module's tensors with an autograd graph, for a deep copy.

    Modules store such tensors in attributes, for example the features of their last batch.

    Args:
        module: Module to copy.

    Returns:
        Memo for ``copy.deepcopy``: detached tensors by ``id`` of the module's.
    """
    values = (value for part in module.modules() for value in vars(part).values())
    return {id(v): v.detach() for v in values if isinstance(v, Tensor) and not v.is_leaf}


def mark_merged(module: nn.Module) -> None:
    """Mark a module as the result of a merge; its copies are marked as well."""
    vars(module)[_MARK] = True


def was_merged(module: nn.Module) -> bool:
    """Return whether a module is marked."""
    return bool(vars(module).get(_MARK, False))
