"""Kronecker factors that are decomposed when their eigenvectors are needed, and not before."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from geomerge import Network
from geomerge.errors import NumericalError
from geomerge.metrics import KroneckerMetric, combine
from geomerge.metrics.kronecker.estimate import estimate_kronecker
from geomerge.metrics.kronecker.factor import Factor, decompose
from geomerge.metrics.kronecker.packed import packed, unpacked
from geomerge.testing import dense_kronecker


@pytest.fixture
def decomposed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Widths of all matrices that are decomposed."""
    widths: list[int] = []
    eigh = torch.linalg.eigh

    def counted(matrix: Tensor) -> tuple[Tensor, Tensor]:
        widths.append(len(matrix))
        found: tuple[Tensor, Tensor] = eigh(matrix)
        return found

    monkeypatch.setattr(torch.linalg, "eigh", counted)
    return widths


def measured(seed: int, dtype: torch.dtype = torch.float64) -> KroneckerMetric:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3)).to(dtype)
    network = Network(module)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(30, 7, generator=generator, dtype=dtype)
    return estimate_kronecker(network, network.initial, [x])


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 32])
def test_a_packed_triangle_is_the_symmetric_matrix_in_half_the_memory(size: int) -> None:
    lower = torch.randn(size, size, dtype=torch.float64).tril()
    whole = lower + lower.tril(-1).T
    few = packed(whole.tril() + torch.full_like(whole, torch.nan).triu(1))
    assert torch.equal(unpacked(few), whole)
    assert few.numel() == size * (size + 1) // 2


def test_multiples_are_not_decomposed_and_single_precision_suffices(decomposed: list[int]) -> None:
    rows = torch.randn(40, 7, dtype=torch.float64)
    factor = Factor.later(rows.T @ rows)
    twice = factor.scaled(2.0)
    assert not decomposed
    torch.testing.assert_close(twice.matrix(), 2 * factor.matrix())
    single = twice.decomposed(torch.float32)
    assert single.dtype == torch.float64
    torch.testing.assert_close(single.dense(), 2 * factor.matrix(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(single.scaled(0.5).dense(), factor.matrix(), rtol=1e-5, atol=1e-4)


def test_a_metric_is_decomposed_by_its_first_step_and_once(decomposed: list[int]) -> None:
    metric = measured(0)
    v = torch.linspace(-1, 1, metric.n, dtype=torch.float64)
    image = metric.mv(v)
    assert not decomposed
    first = metric.damped_solve(v, 1e-3)
    assert sorted(decomposed) == [3, 5, 6, 8]
    torch.testing.assert_close(image, dense_kronecker(metric) @ v)
    torch.testing.assert_close(metric.mv(v), image)
    assert torch.equal(metric.damped_solve(v, 1e-3), first)
    metric.truncate(1e-3)
    assert len(decomposed) == 4


def test_terms_of_a_sum_are_not_decomposed(decomposed: list[int]) -> None:
    one, two = measured(0), measured(1)
    for mean in (False, True):
        both = combine([combine([one, two], mean=mean), two])
        v = torch.linspace(-1, 1, both.n, dtype=torch.float64)
        both.mv(v)
    assert not decomposed
    both = combine([one, two], mean=True)
    moved = both.layers[0].inputs.to(torch.float32, torch.device("cpu"))
    assert not decomposed
    truth = (one.layers[0].inputs.dense() + two.layers[0].inputs.dense()) / 2
    torch.testing.assert_close(moved.dense(), truth.float())
    torch.testing.assert_close(both.layers[0].inputs.dense(), truth)


def test_eigenvectors_are_those_of_the_matrix_to_the_bit_in_as_much_memory() -> None:
    rows = torch.randn(90, 31, generator=torch.Generator().manual_seed(0)).double()
    matrix = rows.T @ rows
    lazy = Factor.later(matrix).to(torch.float32, matrix.device)
    before = lazy.nbytes
    assert (lazy.size, lazy.rank, lazy.dtype) == (31, 31, torch.float32)
    assert torch.equal(lazy.matrix(), unpacked(packed(matrix)))
    whole = decompose(matrix)
    assert torch.equal(lazy.vectors, whole.vectors.float())
    assert torch.equal(lazy.values, whole.values.float())
    assert lazy.nbytes == before
    assert lazy.trace == pytest.approx(float(matrix.trace()), rel=1e-6)


def test_a_matrix_that_is_not_finite_is_refused_at_once() -> None:
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[2, 1] = torch.nan
    with pytest.raises(NumericalError, match="not finite"):
        Factor.later(matrix)
