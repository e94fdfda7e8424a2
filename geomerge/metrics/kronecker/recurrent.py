"""Recurrent layers by elementary products, in place of PyTorch's fused functions.

The equations are those of ``torch.nn.RNN``, ``LSTM`` and ``GRU``. In evaluation mode there is no
dropout between layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["RECURRENT"]

State: TypeAlias = tuple[Tensor, ...]
# Function of the input's gates, the state and the weights that makes one step.
Cell: TypeAlias = "Callable[[Tensor, State, _Weights], State]"


class _Weights(NamedTuple):
    """Weights of one direction of one layer."""

    inputs: Tensor
    state: Tensor
    inputs_bias: Tensor | None
    state_bias: Tensor | None
    projection: Tensor | None

    def gates(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.inputs, self.inputs_bias)

    def own(self, h: Tensor) -> Tensor:
        return functional.linear(h, self.state, self.state_bias)


def _rnn(function: Callable[[Tensor], Tensor]) -> Cell:
    def cell(gates: Tensor, state: State, weights: _Weights) -> State:
        return (function(gates + weights.own(state[0])),)

    return cell


def _gru(gates: Tensor, state: State, weights: _Weights) -> State:
    (h,) = state
    reset, update, new = gates.chunk(3, dim=-1)
    own_reset, own_update, own_new = weights.own(h).chunk(3, dim=-1)
    update = (update + own_update).sigmoid()
    new = (new + (reset + own_reset).sigmoid() * own_new).tanh()
    return (new + update * (h - new),)


def _lstm(gates: Tensor, state: State, weights: _Weights) -> State:
    h, c = state
    enter, forget, cell, out = (gates + weights.own(h)).chunk(4, dim=-1)
    c = forget.sigmoid() * c + enter.sigmoid() * cell.tanh()
    h = out.sigmoid() * c.tanh()
    return (h if weights.projection is None else functional.linear(h, weights.projection)), c


def _one_direction(
    cell: Cell,
    x: Tensor,  # (T, B, d_in)
    state: State,  # (B, d) each
    weights: _Weights,
    backwards: bool,
) -> tuple[Tensor, State]:  # (T, B, d)
    steps = weights.gates(x).unbind(0)
    seen = []
    for gates in reversed(steps) if backwards else steps:
        state = cell(gates, state, weights)
        seen.append(state[0])
    return torch.stack(seen[::-1] if backwards else seen), state


def _layers(cell: Cell, *args: Any, **kwargs: Any) -> Any:
    """Return the results of a fused function, or NotImplemented for packed sequences."""
    x, state, weights, biased, count, _, _, both, batch_first = args
    if not isinstance(weights, (list, tuple)) or kwargs:
        return NotImplemented
    alone = isinstance(state, Tensor)
    states: Sequence[Tensor] = (state,) if alone else state
    x = x.transpose(0, 1) if batch_first else x
    directions = 2 if both else 1
    per = len(weights) // (count * directions)
    last: list[State] = []
    for layer in range(count):
        outs = []
        for direction in range(directions):
            k = layer * directions + direction
            first, second, *more = weights[k * per : (k + 1) * per]
            own_bias = (more.pop(0), more.pop(0)) if biased else (None, None)
            own = _Weights(first, second, own_bias[0], own_bias[1], more[0] if more else None)
            begin = tuple(s[k] for s in states)
            out, end = _one_direction(cell, x, begin, own, direction == 1)
            outs.append(out)
            last.append(end)
        x = torch.cat(outs, dim=-1) if both else outs[0]
    ends = [torch.stack(parts) for parts in zip(*last, strict=True)]
    return (x.transpose(0, 1) if batch_first else x, *ends)


def _of_layers(cell: Cell) -> Callable[..., Any]:
    def layers(*args: Any, **kwargs: Any) -> Any:
        packed = len(args) != 9 or not isinstance(args[2], (list, tuple))
        return NotImplemented if packed else _layers(cell, *args, **kwargs)

    return layers


def _of_one(cell: Cell) -> Callable[..., Any]:
    def one(
        x: Tensor,
        state: Tensor | State,
        inputs: Tensor,
        own: Tensor,
        inputs_bias: Tensor | None = None,
        own_bias: Tensor | None = None,
    ) -> Any:
        weights = _Weights(inputs, own, inputs_bias, own_bias, None)
        alone = isinstance(state, Tensor)
        begin = (state,) if isinstance(state, Tensor) else tuple(state)
        end = cell(weights.gates(x), begin, weights)
        return end[0] if alone else end

    return one


RECURRENT: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.rnn_tanh: _of_layers(_rnn(torch.tanh)),
    torch.rnn_relu: _of_layers(_rnn(torch.relu)),
    torch.gru: _of_layers(_gru),
    torch.lstm: _of_layers(_lstm),
    torch.rnn_tanh_cell: _of_one(_rnn(torch.tanh)),
    torch.rnn_relu_cell: _of_one(_rnn(torch.relu)),
    torch.gru_cell: _of_one(_gru),
    torch.lstm_cell: _of_one(_lstm),
}
