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
from geomerge.metrics.kronecker.forms import held_bytes
from geomerge.metrics.kronecker.metric import KroneckerMetric
from geomerge.metrics.registry import BATCH, MeasuringPace, NetworkSize, metric, seconds_per_input
from geomerge.networks.batches import Batch, shape_of
from geomerge.networks.factor_form import FactorForm
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
    return block_widths(_traced(size.network, size.w, size.x)[0], size.form)


def _measuring_bytes(sizes: Sequence[NetworkSize]) -> int:
    """Return the bytes of all second moments and of the largest decomposition's work space.

    Layer by layer they are those of the widest, beside the factors of all. Half as much as whole
    factors more is held while sums become factors, and factors truncated ones.
    """
    needs = []
    for size in sizes:
        widths = _widths(size)
        if size.form is FactorForm.DIAGONAL:
            needs.append(3 * _factors_bytes(size))  # sums in double precision
            continue
        work = max((2 * moment_bytes(d) + 4 * factor_bytes(d) for d in widths), default=0)
        both = 2 * max(map(moment_bytes, widths), default=0)  # inputs and outputs
        factors = _factors_bytes(size)
        more = factors // 2 if size.form is FactorForm.WHOLE else 0
        moments = both + factors if size.layerwise else sum(map(moment_bytes, widths))
        needs.append(work + moments + more)
    return max(needs, default=0)


def _held_bytes(sizes: Sequence[NetworkSize]) -> int:
    return max(map(_factors_bytes, sizes), default=0)


def _factors_bytes(size: NetworkSize) -> int:
    """Return the bytes of a network's factors, as they are held."""
    return held_bytes(_widths(size), size.form, size.w.device)


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

    each = seconds_per_input(add, most) * _rounds(network, coverage)
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
    form, widths = network.factor_form, block_widths(coverage, network.factor_form)
    if form is FactorForm.DIAGONAL:
        return MeasuringPace(each, traced, 0.0, tuple(coverage.one_by_one), slow)
    besides = traced + _decomposing(widths, w.device)
    product = sum(_product_operations(block.rows, block.width) for block in coverage.blocks)
    if form is not FactorForm.WHOLE:  # eigenvectors are made orthonormal each time
        product += sum(4.0 * _LEADING * decomposition_cost(d) for d in widths)
    return MeasuringPace(each, besides, product / _speed(w), tuple(coverage.one_by_one), slow)


def _rounds(network: Network, coverage: Coverage) -> int:
    """Return how often all inputs are passed, within the limit of second moments."""
    if network.factor_form is FactorForm.DIAGONAL:
        return 1
    return len(parts_of(coverage, network.max_moments, network.factor_form))


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
