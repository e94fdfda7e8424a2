"""Exact diagonal of the metric from derivatives per input, for weights without a cheaper form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from geomerge.metrics.kronecker.coverage import Lookup
from geomerge.metrics.linearisation import vectorised
from geomerge.metrics.outputs import output_map
from geomerge.networks.batches import Batch, single
from geomerge.networks.network import Network

__all__ = ["squared_derivatives"]


def squared_derivatives(
    network: Network,
    w: Tensor,  # (n,)
    names: list[str],
    lookups: list[Lookup],
    x: Batch,  # (B, ...)
    signs: Tensor,  # (B, P, m)
    output: str,
) -> dict[str, Tensor]:
    """Sum squared derivatives with respect to single weights over inputs and directions.

    Args:
        network: Network to differentiate.
        w: Weights of the network.
        names: Names of the tensors, which may be running statistics.
        lookups: Calls of embeddings among them. Derivatives are computed for the looked-up rows
            only, so that the cost does not grow with the vocabulary.
        x: Inputs.
        signs: Directions in output space, P for each input.
        output: Name of the output map, one of :data:`~geomerge.metrics.outputs.OUTPUTS`.

    Returns:
        Sums by name of the tensor.
    """
    fixed = network.unravel(w)
    tables = {lookup.name for lookup in lookups}
    wanted = {k: fixed.pop(k) for k in names if k not in tables}
    zeros = [w.new_zeros(*shape, fixed[name].shape[1]) for name, shape in lookups]

    def phi(
        tensors: dict[str, Tensor], shifts: list[Tensor], one: Batch
    ) -> tuple[Tensor, list[Tensor]]:
        mode = _Shifted([fixed[name] for name in tables], shifts)
        with mode:
            logits = network.functional({**fixed, **tensors}, single(one))
        return output_map(logits, output).squeeze(0), mode.indices

    def derivatives(over: Callable[..., Any]) -> Any:
        def of_one(one: Batch, rows: Tensor) -> tuple[Any, list[Tensor]]:  # (...), (P, m)
            found: Any = vjp(partial(phi, one=one), wanted, zeros, has_aux=True)
            _, pull, indices = found
            return over(pull)(rows), indices

        return over(of_one)(x, signs)

    (plain, shifted), indices = vectorised(derivatives)
    sums = {name: d.double().square().sum(dim=(0, 1)) for name, d in plain.items()}
    for name in tables:
        at = [i for i, lookup in enumerate(lookups) if lookup.name == name]
        ids = torch.cat([indices[i].flatten(1) for i in at], dim=1)
        d = torch.cat([shifted[i].flatten(2, -2) for i in at], dim=2)
        sums[name] = _by_row(d, ids, len(fixed[name]))
    return sums


class _Shifted(TorchFunctionMode):
    """Function mode that adds a shift to each output of an embedding and records the indices."""

    def __init__(self, tables: list[Tensor], shifts: list[Tensor]) -> None:
        super().__init__()
        self._tables = {id(table) for table in tables}
        self._shifts = shifts
        self.indices: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is functional.embedding and id(args[1]) in self._tables:
            out = out + self._shifts[len(self.indices)]
            self.indices.append(args[0])
        return out


def _by_row(
    d: Tensor,  # (B, P, T, D)
    ids: Tensor,  # (B, T)
    size: int,
) -> Tensor:  # (size, D)
    """Sum derivatives over the lookups of each row of the table, then squares over inputs."""
    inputs = torch.arange(len(ids), device=ids.device).unsqueeze(1)
    used, place = (inputs * size + ids).reshape(-1).unique(return_inverse=True)
    sums = d.new_zeros(len(used), *d.shape[1::2])  # (U, P, D)
    sums.index_add_(0, place, d.transpose(1, 2).flatten(0, 1))
    squares = sums.double().square().sum(dim=1)
    return squares.new_zeros(size, d.shape[-1]).index_add_(0, used % size, squares)
