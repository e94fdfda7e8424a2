"""Registration of the Kronecker metric, with estimates of its memory and time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from geomerge.data import Inputs
from geomerge.metrics.kronecker.coverage import Coverage, find_coverage
from geomerge.metrics.kronecker.diagonal import at_tokens, squared_derivatives
from geomerge.metrics.kronecker.estimate import (
    KroneckerSums,
    block_widths,
    estimate_kronecker,
    parts_of,
)
from geomerge.metrics.kronecker.factor import (
    WHOLE,
    decomposition_cost,
    factor_bytes,
    factorise,
    moment_bytes,
    stored_rank,
)
from geomerge.metrics.kronecker.metric import KroneckerMetric
from geomerge.metrics.registry import BATCH, MeasuringPace, NetworkSize, metric, seconds_per_input
from geomerge.networks.batches import Batch, shape_of
from geomerge.networks.network import Network
from geomerge.processes import team

__all__: list[str] = []


# Coverage of a module's weights and the seconds of its traces, by what they depend on.
_KNOWN: WeakKeyDictionary[nn.Module, dict[str, tuple[Coverage, float]]] = WeakKeyDictionary()


def _traced(network: Network, w: Tensor, x: Batch) -> tuple[Coverage, float]:
    """Return the forms of a network's metric and the seconds of finding them, which is done once.

    Args:
        network: Network.
        w: Weights, shape (n,).
        x: Batch of one input.
    """
    known = _KNOWN.setdefault(network.module, {})
    key = f"{network.shapes} {network.columns} {network.frozen} {shape_of(x)}"
    if key not in known:
        began = time.perf_counter()
        known[key] = find_coverage(network, w, x), time.perf_counter() - began
    return known[key]


def _widths(size: NetworkSize) -> list[int]:
    """Return the width of every Kronecker factor of a network."""
    return block_widths(_traced(size.network, size.w, size.x)[0])


def _measuring_bytes(sizes: Sequence[NetworkSize]) -> int:
    """Return the bytes of all second moments and of the largest decomposition's work space.

    Layer by layer they are those of the widest, beside the factors of all.
    """
    needs = []
    for size in sizes:
        widths = _widths(size)
        work = max((2 * moment_bytes(d) + 4 * factor_bytes(d) for d in widths), default=0)
        both = 2 * max(map(moment_bytes, widths), default=0)  # inputs and outputs
        held = both + sum(map(factor_bytes, widths))
        moments = sum(map(moment_bytes, widths))
        needs.append(work + (held if size.layerwise else moments))
    return max(needs, default=0)


def _held_bytes(sizes: Sequence[NetworkSize]) -> int:
    widths = (_widths(size) for size in sizes)
    return max((sum(map(factor_bytes, of)) for of in widths), default=0)


_LEADING = 0.5  # approximate share of stored directions with eigenvalues above usual dampings
_SIDE = 768
_TRIED = (256, 768)  # widths of the decompositions that are timed


def _pace(network: Network, w: Tensor, inputs: Inputs, output: str) -> MeasuringPace:
    """Time the accumulation of a few inputs and two decompositions, and extrapolate."""
    coverage, traced = _traced(network, w, inputs.batch(slice(0, 1)))
    cheap = replace(coverage, one_by_one=[])  # these are timed apart
    sums = KroneckerSums(network, w, output, cheap, 2, held=False)
    generator = torch.Generator().manual_seed(0)
    most = min(sums.batch, BATCH, len(inputs))

    def add(count: int) -> None:
        sums.add(inputs.batch(slice(0, count)), generator)

    each = seconds_per_input(add, most) * len(parts_of(coverage, network.max_moments))
    passes = inputs.equal_batch_count(BATCH) / len(inputs)
    if passes * most > 1:  # texts, of which few are equally long
        began = time.perf_counter()
        add(1)
        alone = time.perf_counter() - began
        each += passes * max(alone - each, 0.0)
    slow = 0.0
    if coverage.one_by_one:
        x = inputs.batch(slice(0, 1))
        rows, outputs = network.logits(w, x).shape
        signs = at_tokens(torch.ones(rows, 2, outputs).to(w), x)
        began = time.perf_counter()
        squared_derivatives(network, w, coverage.one_by_one, x, signs, output)
        slow = time.perf_counter() - began
    besides = traced + _decomposing(block_widths(coverage), w.device)
    product = sum(_product_operations(block.rows, block.width) for block in coverage.blocks)
    return MeasuringPace(each, besides, product / _speed(w), tuple(coverage.one_by_one), slow)


def _product_operations(rows: int, columns: int) -> float:
    return 4.0 * rows * columns * (stored_rank(rows) + stored_rank(columns)) * _LEADING


def _speed(w: Tensor) -> float:
    """Return the measured operations per second of matrix products."""
    matrix = torch.ones(_SIDE, _SIDE, dtype=w.dtype, device=w.device)
    matrix @ matrix
    began = time.perf_counter()
    matrix @ matrix
    return 2.0 * _SIDE**3 / (time.perf_counter() - began)


def _decomposing(widths: Sequence[int], device: torch.device) -> float:
    """Return the seconds of decompositions of given widths, extrapolated from two."""
    unit = []
    for width in _TRIED:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(width, width, generator=generator).to(device)
        matrix = (rows.T @ rows).double()
        factorise(matrix[:64, :64])
        began = time.perf_counter()
        factorise(matrix)
        unit.append((time.perf_counter() - began) / decomposition_cost(width))
    return sum(unit[width > WHOLE] * decomposition_cost(width) for width in widths)


@metric(
    KroneckerMetric, "Kronecker factors per layer, cheap and storable as a sketch",
    cheaper="euclidean", measuring_bytes=_measuring_bytes, held_bytes=_held_bytes, pace=_pace,
)  # fmt: skip
def _measure(
    network: Network, w: Tensor, inputs: Inputs, output: str, seed: int
) -> KroneckerMetric:
    mates = team()  # every process makes at least one pass
    size = BATCH if mates is None else max(1, min(BATCH, -(-len(inputs) // mates.size)))
    return estimate_kronecker(network, w, inputs.equal_batches(size), output, seed)
