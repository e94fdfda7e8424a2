"""Laws of Kronecker factors in half precision, in files, in four blocks, and as diagonals."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from geomerge import KroneckerMetric, Network
from geomerge.data import as_they_are
from geomerge.io import paged
from geomerge.metrics import Metric, combine, make_sketch
from geomerge.metrics.kronecker import forms
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.metrics.kronecker.forms import in_form
from geomerge.metrics.kronecker.half_factor import HalfFactor
from geomerge.metrics.kronecker.layer import KroneckerLayer
from geomerge.metrics.kronecker.mean import KroneckerMean
from geomerge.networks.batches import Batch, split
from geomerge.networks.factor_form import FactorForm
from geomerge.testing import MetricLaws, dense_kronecker

Case = tuple[Network, Batch]
OTHERS = [FactorForm.BLOCKS, FactorForm.DIAGONAL]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count factors of more than three rows as wide."""
    monkeypatch.setattr(forms, "_WIDE", 3)


@pytest.fixture
def unrounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave eigenvectors as they are."""
    monkeypatch.setattr(HalfFactor, "of", lambda factor, store=None: factor)


def measured(network: Network, x: Batch, form: FactorForm) -> KroneckerMetric:
    view = network.limited(500, None, form)
    return estimate_kronecker(view, network.initial, split(x, 3), "hellinger")


def blocks_of(matrix: Tensor, form: FactorForm) -> Tensor:
    """Set a factor to zero outside of its diagonal blocks."""
    if form is FactorForm.DIAGONAL:
        return matrix.diagonal().diag()
    out = torch.zeros_like(matrix)
    size = len(matrix)
    ends = [size * k // 4 for k in range(5)] if size > 3 else [0, size]
    for start, stop in pairwise(ends):
        out[start:stop, start:stop] = matrix[start:stop, start:stop]
    return out


def truth(whole: KroneckerMetric, form: FactorForm) -> Tensor:
    """Return the dense metric whose factors are blocks of those of a whole one."""
    g, index = torch.zeros(whole.n, whole.n, dtype=torch.float64), torch.arange(whole.n)
    for layer in whole.layers:
        at = layer.matrix(index).reshape(-1)
        a, b = (blocks_of(f.dense(), form) for f in (layer.inputs, layer.outputs))
        g[at[:, None], at[None, :]] = torch.kron(b, a)
    for place, diagonal in whole.diagonals:
        g[index[place], index[place]] = diagonal
    return g


@pytest.mark.usefixtures("unrounded")
@pytest.mark.parametrize("form", OTHERS)
def test_blocks_and_diagonal_are_those_of_the_dense_factors(kind: Case, form: FactorForm) -> None:
    network, x = kind
    whole = measured(network, x, FactorForm.WHOLE)
    metric, wanted = measured(network, x, form), truth(whole, form)
    v = torch.randn(network.n, dtype=torch.float64)
    torch.testing.assert_close(metric.mv(v), wanted @ v)
    assert metric.inner(v, v) == pytest.approx(float(v @ wanted @ v), rel=1e-9)
    assert float(torch.linalg.eigvalsh(wanted)[0]) > -1e-12 * float(wanted.trace())
    converted = in_form(whole, network.limited(500, None, form))
    torch.testing.assert_close(converted.mv(v), wanted @ v)
    assert in_form(converted, network.limited(500, None, form)).mv(v).equal(converted.mv(v))
    names = [layer.name for layer in metric.layers]
    assert len(set(names)) == len(names)
    assert [layer.name for layer in converted.layers] == names


@pytest.mark.usefixtures("unrounded")
@pytest.mark.parametrize("form", OTHERS)
def test_truncated_factors_are_split_with_their_tails(case: Case, form: FactorForm) -> None:
    network, x = case
    whole = measured(network, x, FactorForm.WHOLE)
    layers = tuple(
        KroneckerLayer(
            one.name, one.weight, one.bias, one.inputs.truncated(2), one.outputs.truncated(2)
        )
        for one in whole.layers
    )
    few = KroneckerMetric(whole.n, layers, whole.rest, whole.diagonal, whole.diagonal_only)
    v = torch.randn(network.n, dtype=torch.float64)
    converted = in_form(few, network.limited(500, None, form))
    torch.testing.assert_close(converted.mv(v), truth(few, form) @ v)


@pytest.mark.usefixtures("unrounded")
@pytest.mark.parametrize("form", OTHERS)
def test_sums_and_means_of_metrics_in_blocks(case: Case, form: FactorForm) -> None:
    network, x = case
    one, other = measured(network, x, form), measured(network, x, form)
    v = torch.randn(network.n, dtype=torch.float64)
    torch.testing.assert_close(combine([one, other]).mv(v), 2 * one.mv(v))
    w = [network.initial, network.initial + v]
    mean = KroneckerMean([one, other], w, network.initial)
    forces = mean.pulls(mean.at(1e-6))  # they balance at the mean
    assert float(sum(forces).norm()) < 1e-2 * float(one.mv(v).norm())
    assert mean.drifts(w[1]) == pytest.approx([one.inner(v, v), 0])


@pytest.mark.usefixtures("unrounded")
@pytest.mark.parametrize("form", OTHERS)
def test_a_sketch_is_measured_in_the_form_of_its_network(form: FactorForm) -> None:
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 5)))
    inputs, view = as_they_are(torch.randn(40, 9)), network.limited(500, None, form)
    sketch = make_sketch(view, network.initial, inputs, "noise")
    whole = make_sketch(network, network.initial, inputs, "noise").metric
    v = torch.randn(network.n)
    if form is FactorForm.DIAGONAL:
        assert sketch.metric.nbytes < whole.nbytes / 4
        torch.testing.assert_close(sketch.metric.mv(v), whole.diagonal_of(lambda s: s) * v)
    else:
        assert len(sketch.metric.layers) > len(whole.layers)


@pytest.mark.parametrize("form", [FactorForm.HALF, FactorForm.FILES])
def test_halved_factors_differ_by_the_rounding_of_bfloat16(case: Case, form: FactorForm) -> None:
    network, x = case
    whole, half = measured(network, x, FactorForm.WHOLE), measured(network, x, form)
    for one, other in zip(whole.layers, half.layers, strict=True):
        for a, b in ((one.inputs, other.inputs), (one.outputs, other.outputs)):
            dense = a.dense()
            assert float((b.dense() - dense).norm()) <= 2**-8 * float(dense.norm())
            assert float(torch.linalg.eigvalsh(b.dense())[0]) >= -1e-9 * a.trace
            u = b.vectors
            unit = torch.eye(b.rank, dtype=u.dtype)
            assert float((u.T @ u - unit).norm()) < 1e-6
            few, wanted = b.truncated(2).dense(), a.truncated(2).dense()
            assert float((few - wanted).norm()) <= 2**-8 * float(dense.norm())
    assert half.nbytes < whole.nbytes
    for damping in (1e-3, 0.1):
        v = torch.randn(network.n, dtype=torch.float64)
        expected, got = whole.damped_solve(v, damping), half.damped_solve(v, damping)
        assert float((got - expected).norm()) < 0.05 * float(expected.norm())
        few = half.truncate(1e-12).damped_solve(v, damping)
        assert float((few - got).norm()) < 2**-8 * float(got.norm())


def test_factors_in_files_are_read_and_their_memory_given_back() -> None:
    torch.manual_seed(0)
    network = Network(nn.Linear(40, 30))
    x = torch.randn(50, 40)
    half, filed = (measured(network, x, f) for f in (FactorForm.HALF, FactorForm.FILES))
    v = torch.randn(network.n)
    torch.testing.assert_close(filed.mv(v), half.mv(v), rtol=0, atol=0)
    paged.give_back()
    torch.testing.assert_close(filed.mv(v), half.mv(v), rtol=0, atol=0)
    both = combine([filed, filed])
    torch.testing.assert_close(both.mv(v), 2 * filed.mv(v), rtol=1e-2, atol=1e-3)
    assert both.nbytes == filed.nbytes


class Form(MetricLaws):
    """A metric in one of the forms, with products compared with its own dense matrix."""

    name = "kronecker"
    form: ClassVar[FactorForm]

    def make(self, network: Network, x: Batch) -> Metric:
        return measured(network, x, self.form)

    def truth(self, metric: Metric, network: Network, x: Batch) -> Tensor:
        assert isinstance(metric, KroneckerMetric)
        return dense_kronecker(metric)


class TestHalf(Form):
    form = FactorForm.HALF
    rtol = 2**-8  # sums are rounded again


class TestBlocks(Form):
    form = FactorForm.BLOCKS
    rtol = 2**-8


class TestDiagonal(Form):
    form = FactorForm.DIAGONAL
