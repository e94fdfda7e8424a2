"""Exact diagonal of the metric from per-input derivatives of the whole network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.func import vjp

from geomerge.metrics.linearisation import vectorised
from geomerge.metrics.outputs import output_map
from geomerge.networks.batches import Batch, batch_size, single, token_mask
from geomerge.networks.network import Network

__all__ = ["at_tokens", "squared_derivatives"]


def at_tokens(
    values: Tensor,  # (R, ...)
    x: Batch,  # (B, ...)
) -> Tensor:  # (B, ...) or (B, T, ...)
    """Return values per row of outputs by input, with a token axis for language models.

    Args:
        values: Values, one for each row of outputs.
        x: Inputs. If there is one row per input, the values are returned unchanged.
    """
    if len(values) == batch_size(x):
        return values
    mask = token_mask(x)
    if mask is None:
        each = len(values) // batch_size(x)
        return values.reshape(batch_size(x), each, *values.shape[1:])
    spread = values.new_zeros(*mask.shape, *values.shape[1:])
    spread[mask] = values
    return spread


def squared_derivatives(
    network: Network,
    w: Tensor,  # (n,)
    names: list[str],
    x: Batch,  # (B, ...)
    signs: Tensor,  # (B, P, m) or (B, T, P, m)
    output: str,
) -> dict[str, Tensor]:
    """Sum squared derivatives with respect to each weight over inputs and directions.

    Args:
        network: Network to differentiate.
        w: Weights of the network.
        names: Names of the tensors, which may be running statistics.
        x: Inputs.
        signs: Directions in output space, P for each input, or for each token of a language model's
            texts (zero at padding).
        output: Name of the output map, one of :data:`~geomerge.metrics.outputs.OUTPUTS`.

    Returns:
        Sums by name of the tensor, each of the tensor's shape.
    """
    fixed = network.unravel(w)
    wanted = {k: fixed.pop(k) for k in names}

    def phi(tensors: dict[str, Tensor], one: Batch) -> Tensor:
        logits = network.at_positions({**fixed, **tensors}, single(one))
        return output_map(logits, output).squeeze(0)

    def derivatives(over: Callable[..., Any]) -> Any:
        def of_one(one: Batch, rows: Tensor) -> dict[str, Tensor]:  # (P, ...)
            pull: Any = vjp(partial(phi, one=one), wanted)[1]
            found: dict[str, Tensor] = over(lambda row: pull(row)[0])(rows)
            return found

        return over(of_one)(x, signs)

    if signs.dim() == 4:
        signs = signs.movedim(2, 1)  # (B, P, T, m)
    found = vectorised(derivatives)
    return {name: d.double().square().sum(dim=(0, 1)) for name, d in found.items()}
